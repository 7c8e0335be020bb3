"""What the demo settles before it trains; the whole of it is in tests/integration."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokvid.cli.demo import recipes
from tokvid.cli.demo_run import fit_batch


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
