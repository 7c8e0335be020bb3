"""Stages add up their seconds over runs, and know when some of them are not known."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tokvid.cli.stages import Stages

WORK = {"steps": 3}


def test_stages_are_announced_and_timed(capsys: pytest.CaptureFixture[str]) -> None:
    stages = Stages(2, began=time.perf_counter() - 5)
    with stages("draw"):
        time.sleep(0.02)
    with stages("train"):
        pass
    assert capsys.readouterr().err == "[1/2] draw\n[2/2] train\n"
    assert stages.seconds["draw"] >= 0.02 > stages.seconds["train"]
    assert 5 < stages.elapsed < 60 and stages.complete


def run(file: Path, *, work: dict[str, int] = WORK, fails_in: str = "") -> Stages:
    stages = Stages(3, file=file, work=work)
    for title in ("draw", "train", "show"):
        with stages(title):
            time.sleep(0.02)
            if title == fails_in:
                raise KeyboardInterrupt
    return stages


def test_a_run_that_goes_on_adds_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "stages.json"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(file, fails_in="train")
    stages = run(file)
    assert stages.seconds["draw"] >= 0.06 and stages.seconds["train"] >= 0.06 and stages.seconds["show"] >= 0.02
    assert stages.elapsed >= sum(stages.seconds.values()) and stages.complete
    assert capsys.readouterr().err.splitlines()[-1] == "[3/3] show"
    stages.remove_file()
    assert list(tmp_path.iterdir()) == [] and run(file).seconds["draw"] < 0.06


def test_other_work_starts_anew(tmp_path: Path) -> None:
    file = tmp_path / "stages.json"
    with pytest.raises(KeyboardInterrupt):
        run(file, fails_in="show")
    other = Stages(3, file=file, work={"steps": 4})
    assert other.seconds == {} and other.complete and other.elapsed < 0.02


def test_a_run_that_was_killed_in_a_stage_is_not_complete(tmp_path: Path) -> None:
    file = tmp_path / "stages.json"
    stages = Stages(3, file=file, work=WORK)
    with stages("draw"):
        pass
    context = stages("train")
    context.__enter__()  # and no end: the process is gone
    again = run(file)
    assert not again.complete and "train" in again.seconds
    assert not Stages(3, file=file, work=WORK).complete, "it was complete again after one more run"


@pytest.mark.parametrize("text", ["", "[]", '{"work": 1}', "{"])
def test_a_damaged_file_is_no_reason_to_stop(text: str, tmp_path: Path) -> None:
    file = tmp_path / "stages.json"
    file.write_text(text, encoding="utf-8")
    assert set(run(file).seconds) == {"draw", "train", "show"}


def test_what_fails_in_the_first_stage_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out" / "stages.json", fails_in="draw")
    assert list(tmp_path.iterdir()) == []
