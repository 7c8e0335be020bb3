"""Dialogues to train on, by one configuration. Models and codes are not known here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokvid.config_checks import at_least
from tokvid.data.clip import Split
from tokvid.data.dialogue import DialogueSource


@dataclass(frozen=True, kw_only=True)
class SpriteDialogueConfig:
    """So many dialogues of the sprite world a split, about clips of ``num_frames`` frames of ``size`` (H, W) at
    ``fps``."""

    kind: Literal["sprites"] = "sprites"
    size: tuple[int, int] = (32, 32)
    num_frames: int = 17
    fps: float = 8.0
    train: int = 4096
    held_out: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "train", "held_out")
        at_least(self, 2, "num_frames")  # one frame moves nowhere, and dialogues are about motion


DialogueDataConfig = SpriteDialogueConfig


def open_dialogues(config: DialogueDataConfig, split: Split) -> DialogueSource:
    """Open one split of a configuration."""
    from tokvid.data.sprites.dialogues import SpriteDialogues
    from tokvid.data.sprites.world import SpriteWorldConfig

    world = SpriteWorldConfig(size=config.size, num_frames=config.num_frames, fps=config.fps, seed=config.seed)
    return SpriteDialogues(world, split, config.train if split == "train" else config.held_out)
