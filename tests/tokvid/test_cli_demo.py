"""What the demo settles before it trains; the whole of it is in tests/integration."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokvid.cli.demo import check_replaceable, recipes
from tokvid.cli.demo_run import fit_batch
from tokvid.errors import DataError


def test_a_smaller_batch_is_told_and_stdout_is_left_to_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    recipe, _ = recipes(fast=True, data="videos", output=Path("runs/demo"))
    wanted = recipe.training.batch_size
    assert fit_batch(recipe, wanted) is recipe
    assert capsys.readouterr() == ("", "")
    fitted = fit_batch(recipe, wanted - 1)
    assert fitted.training.batch_size == wanted - 1 and fitted.data == recipe.data
    said = capsys.readouterr()
    assert f"{wanted - 1} clips cannot fill a batch of {wanted}" in said.err
    assert said.out == ""


def test_a_finished_demo_is_replaced_by_force_alone(tmp_path: Path) -> None:
    check_replaceable(tmp_path / "none", force=False)
    (tmp_path / "generated").mkdir()
    (tmp_path / "generated" / "07.mp4").touch()
    check_replaceable(tmp_path, force=False)
    (tmp_path / "generated" / "mine.txt").touch()
    with pytest.raises(DataError, match=r"more than a demo's videos \(mine\.txt\)"):
        check_replaceable(tmp_path, force=True)
    (tmp_path / "generated" / "mine.txt").unlink()
    (tmp_path / "metrics.json").touch()
    with pytest.raises(DataError, match="holds a finished demo"):
        check_replaceable(tmp_path, force=False)
    check_replaceable(tmp_path, force=True)
    (tmp_path / "stages.json").touch()  # one that was begun anew, and interrupted, goes on
    check_replaceable(tmp_path, force=False)
