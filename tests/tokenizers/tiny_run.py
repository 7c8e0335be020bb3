"""What the tests of training share: a run of a second, and ways to stop it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.tokenizers.lively import SMALLEST
from tokvid.data.clips import ClipArray, SpriteDataConfig
from tokvid.training_log import read_log
from tokvid_tokenizers.training import CODEC_FOLDER, CodecTrainer, train_codec
from tokvid_tokenizers.training_config import CodecRecipe, CodecTrainingConfig

DATA = SpriteDataConfig(size=(16, 16), num_frames=5, train_clips=10, held_out_clips=3)
STEPS = 12


def recipe(output: Path, **training: Any) -> CodecRecipe:
    """Twelve steps with a checkpoint every four, a log line every two; fp32, because the probe of bf16 may waver."""
    settings: dict[str, Any] = {
        "steps": STEPS,
        "batch_size": 4,
        "warmup_steps": 2,
        "precision": "fp32",
        "log_every": 2,
        "validate_every": 4,
        "validation_clips": 2,
        "checkpoint_every": 4,
    }
    return CodecRecipe(
        seed=3,
        output=str(output),
        data=DATA,
        codec=SMALLEST,
        training=CodecTrainingConfig(**{**settings, **training}),
    )


def lines(output: Path) -> list[dict[str, float]]:
    """The log without the speeds, which no two runs share."""
    return [
        {name: value for name, value in line.items() if name not in ("frames/s", "data_wait")}
        for line in read_log(output / "log.jsonl")
    ]


def assert_same_run(output: Path, straight: Path) -> None:
    assert lines(output) == lines(straight)
    for name in ("model.safetensors", "config.json"):
        assert (output / CODEC_FOLDER / name).read_bytes() == (straight / CODEC_FOLDER / name).read_bytes()


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[CodecTrainer], object]) -> None:
    """Do something when the batch of ``step`` (from 0) is about to be drawn."""
    batch = CodecTrainer.batch

    def drawn(trainer: CodecTrainer, number: int) -> Tensor:
        if number == trainer.step == step:
            act(trainer)
        return batch(trainer, number)

    monkeypatch.setattr(CodecTrainer, "batch", drawn)


class Killed(BaseException):
    """Stands for the end of a process: nothing in a run handles it."""


def die(trainer: CodecTrainer) -> None:
    raise Killed


def killed_at(monkeypatch: pytest.MonkeyPatch, step: int, run: CodecRecipe, clips: tuple[ClipArray, ClipArray]) -> None:
    """Train ``run`` until it dies when the batch of ``step`` (from 0) is about to be drawn."""
    with monkeypatch.context() as patch:
        at_step(patch, step, die)
        with pytest.raises(Killed):
            train_codec(run, *clips)
