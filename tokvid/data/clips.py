"""Captioned clips to train on: from the sprite world or from a folder of videos, by one configuration.

``open_clips(config, split)`` gives a :class:`ClipSource`; ``materialise`` turns a source into one array. Models and
codes are not known here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from tokvid.config_checks import at_least
from tokvid.data.clip import Clip, Split
from tokvid.data.clip_source import ClipSource, Skipped, in_order
from tokvid.data.folder_clips import FolderClips, FolderDataConfig
from tokvid.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from tokvid.data.sprites.world import SpriteWorld

__all__ = [
    "ClipArray",
    "ClipSource",
    "DataConfig",
    "FolderClips",
    "FolderDataConfig",
    "Skipped",
    "Split",
    "SpriteClips",
    "SpriteDataConfig",
    "materialise",
    "open_clips",
    "open_splits",
]

_BATCH = 32  # sprite clips drawn at once


@dataclass(frozen=True, kw_only=True)
class SpriteDataConfig:
    """So many clips of the sprite world a split, each ``num_frames`` frames of ``size`` (H, W) at ``fps``."""

    kind: Literal["sprites"] = "sprites"
    size: tuple[int, int] = (32, 32)
    num_frames: int = 17
    fps: float = 8.0
    train_clips: int = 4096
    held_out_clips: int = 256
    seed: int = 0
    two_sprite_share: float = 0.2

    def __post_init__(self) -> None:
        at_least(self, 1, "train_clips", "held_out_clips")
        _world(self)  # it checks the rest


DataConfig = SpriteDataConfig | FolderDataConfig


class SpriteClips(ClipSource):
    """The first clips of one split of the sprite world; drawn anew at each call, the same every time."""

    def __init__(self, config: SpriteDataConfig, split: Split) -> None:
        self.config, self.split = config, split
        self.size, self.num_frames, self.fps = config.size, config.num_frames, config.fps
        self.name = f"sprites/{split}"
        self._world = _world(config)

    def __len__(self) -> int:
        return self.config.train_clips if self.split == "train" else self.config.held_out_clips

    def load(self, index: int) -> Clip:
        self._check_index(index)
        return self._world.clip(index, split=self.split)

    def reshaped(self, size: tuple[int, int], num_frames: int) -> SpriteClips:
        """The clips of the same numbers in another shape: other scenes, because scenes are drawn to fit."""
        return SpriteClips(replace(self.config, size=size, num_frames=num_frames), self.split)

    def digest(self, *, words: bool = False) -> str:
        """SHA-256 (64 hex digits) of what the clips and their captions are drawn from."""
        return hashlib.sha256(repr((self.config, self.split)).encode()).hexdigest()

    def load_range(self, first: int, last: int, *, workers: int = 0) -> Iterator[Clip | Skipped]:
        """The clips from ``first`` up to ``last`` in order, drawn in batches."""
        self._check_range(first, last)
        batches = [range(start, min(start + _BATCH, last)) for start in range(first, last, _BATCH)]
        for clips in in_order(self._draw, batches, workers=workers):
            yield from clips

    def _draw(self, indices: range) -> list[Clip]:
        frames, captions = self._world.render_many(indices, self.split)
        return [
            Clip(frames=picture, fps=self.fps, caption=caption, name=f"{self.split}-{index:06d}")
            for index, picture, caption in zip(indices, frames, captions, strict=True)
        ]


def open_clips(config: DataConfig, split: Split) -> ClipSource:
    """Open one split of a data configuration; :class:`DataError` where it does not hold what it should."""
    if split not in get_args(Split):
        raise DataError(f"no split is called {split!r}: {did_you_mean(str(split), get_args(Split))}")
    return SpriteClips(config, split) if isinstance(config, SpriteDataConfig) else FolderClips(config, split)


def open_splits(config: DataConfig) -> tuple[ClipSource, ClipSource]:
    """Open both splits, ``train`` and ``held_out``: for a folder in half the time of two :func:`open_clips`."""
    if isinstance(config, FolderDataConfig):
        return FolderClips.open_splits(config)
    return SpriteClips(config, "train"), SpriteClips(config, "held_out")


@dataclass(kw_only=True)
class ClipArray:
    """Clips in memory: ``frames`` uint8 ``[N,T,H,W,3]`` at ``fps``, with N ``captions`` and ``names``.

    ``skipped`` lists (name, reason) of the videos and clips that are not among them.
    """

    frames: npt.NDArray[np.uint8]
    fps: float
    captions: list[str]
    names: list[str]
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.captions)


def materialise(
    source: ClipSource, *, progress: Callable[[int, int], None] | None = None, workers: int = 0
) -> ClipArray:
    """Load every clip of ``source`` into one array.

    Clips that do not decode are left out and listed, never replaced. ``progress(done, total)`` is called after every
    clip; ``workers`` threads load beside each other (0: none). :class:`DataError` when no clip is left of some.
    """
    total = len(source)
    frames = np.empty((total, source.num_frames, *source.size, 3), np.uint8)
    captions: list[str] = []
    names: list[str] = []
    skipped = [(item.name, item.reason) for item in source.skipped]
    for done, result in enumerate(source.load_all(workers=workers), start=1):
        if isinstance(result, Skipped):
            skipped.append((result.name, result.reason))
        else:
            frames[len(captions)] = result.frames
            captions.append(result.caption)
            names.append(result.name)
        if progress is not None:
            progress(done, total)
    if total and not captions:
        name, reason = skipped[-1]
        raise DataError(f"{source.name}: none of its {total} clips can be loaded; the last: {name}: {reason}")
    return ClipArray(frames=frames[: len(captions)], fps=source.fps, captions=captions, names=names, skipped=skipped)


def _world(config: SpriteDataConfig) -> SpriteWorld:
    from tokvid.data.sprites.world import SpriteWorld, SpriteWorldConfig

    return SpriteWorld(
        SpriteWorldConfig(
            size=config.size,
            num_frames=config.num_frames,
            fps=config.fps,
            two_sprite_share=config.two_sprite_share,
            seed=config.seed,
        )
    )
