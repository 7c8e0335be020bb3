"""The stages of a demo in one process, at a size of seconds; the command itself is tested in tests/integration."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tokvid.tiny_recipes import CODEC, DATA, MODEL, TRAINING
from tokvid.cli.demo_run import run_demo, time_figure
from tokvid.config import from_mapping
from tokvid_lm.training_config import LMRecipe
from tokvid_tokenizers.training_config import CodecRecipe


def recipes(output: Path, data: dict[str, Any] = DATA) -> tuple[CodecRecipe, LMRecipe]:
    codec = {"task": "codec", "output": str(output / "codec"), "data": data, "codec": CODEC, "training": TRAINING}
    lm = {"task": "lm", "output": str(output / "lm"), "data": data, "model": MODEL, "training": TRAINING}
    lm |= {"codec": str(output / "codec" / "codec"), "evaluation": {"clips": 4}}
    return from_mapping(CodecRecipe, codec), from_mapping(LMRecipe, lm)


def test_an_interrupted_demo_tells_the_time_of_all_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **settings: object) -> None:
        time.sleep(0.3)
        raise KeyboardInterrupt

    began = time.perf_counter()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        patch.setattr("tokvid_lm.training.train_lm", stop)
        run_demo(*recipes(tmp_path), output=tmp_path, fast=True)
    first = time.perf_counter() - began
    kept = json.loads((tmp_path / "stages.json").read_text(encoding="utf-8"))
    assert kept["seconds"]["train the language model"] >= 0.3

    began = time.perf_counter()
    assert run_demo(*recipes(tmp_path), output=tmp_path, fast=True) == 0
    second = time.perf_counter() - began
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    seconds = metrics["seconds"]
    assert metrics["seconds_complete"] is True
    # The second run does not train the codec again: those seconds are the first one's.
    assert seconds["train the codec"] >= kept["seconds"]["train the codec"]
    assert seconds["train the language model"] > 0.3
    assert max(first, second) < seconds["total"] <= first + second + 0.01
    assert not (tmp_path / "stages.json").exists() and not list(tmp_path.rglob("step-*"))


@pytest.mark.parametrize(
    ("seconds", "complete", "judged", "value", "reached"),
    [
        (600.0, True, True, "10.0 minutes", True),
        (780.0, True, True, "13.0 minutes", False),
        (600.0, False, True, "at least 10.0 minutes (it was killed and went on)", None),
        (780.0, False, True, "at least 13.0 minutes (it was killed and went on)", False),
        (780.0, True, False, "13.0 minutes", None),
    ],
)
def test_a_time_is_judged_where_it_is_known(
    seconds: float, complete: bool, judged: bool, value: str, reached: bool | None
) -> None:
    figure = time_figure(seconds, complete=complete, judged=judged)
    assert (figure.value, figure.reached, bool(figure.goal)) == (value, reached, judged)
