"""What the tests of training a language model share: a recipe of seconds and its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokvid.config import from_mapping
from tokvid.data.clips import ClipSource, open_clips
from tokvid_lm.training import TrainedLM, train_lm
from tokvid_lm.training_config import LMRecipe
from tokvid_tokenizers import VideoCodec

DATA = {"kind": "sprites", "size": [16, 16], "num_frames": 5, "train_clips": 24, "held_out_clips": 5}
MODEL = {
    "kind": "scratch",
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "intermediate_size": 48,
    "max_positions": 96,
    "text_vocab_size": 300,
}
TRAINING = {
    "steps": 8,
    "batch_size": 4,
    "warmup_steps": 2,
    "precision": "fp32",
    "log_every": 1,
    "validate_every": 4,
    "checkpoint_every": 3,
    "optimizer": {"kind": "adamw", "learning_rate": 0.003},
}


def recipe(output: Path, **training: Any) -> LMRecipe:
    drawn = {"mode": "next_token", "guidance_scale": 1.5, "temperature": 0.8, "top_k": 50}
    data = {"task": "lm", "output": str(output), "codec": "preset:tiny", "data": DATA, "model": MODEL}
    data["evaluation"] = {"clips": 5, "sampling": [drawn]}
    return from_mapping(LMRecipe, {**data, "training": {**TRAINING, **training}})


def train(recipe: LMRecipe, codec: VideoCodec, *, resume: bool = False) -> TrainedLM:
    splits: list[ClipSource] = [open_clips(recipe.data, "train"), open_clips(recipe.data, "held_out")]
    return train_lm(recipe, *splits, codec=codec, resume=resume)
