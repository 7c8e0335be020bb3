"""The sprite world: seeded, captioned clips of one or two sprites moving over a textured background.

A clip is a function of (seed, split, index) alone. The split ``held_out`` shows only the sprite-motion
combinations that the split ``train`` never shows. It knows nothing of files, models or tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from tokvid.config_checks import at_least, finite, is_share, positive
from tokvid.data.clip import Clip, Split
from tokvid.data.sprites.backgrounds import draw_background, render_background
from tokvid.data.sprites.captions import write_caption
from tokvid.data.sprites.motions import combinations, draw_paths
from tokvid.data.sprites.scene import Scene, SpritePlacement
from tokvid.data.sprites.sheet import sprite_picture
from tokvid.errors import ConfigError, DataError, did_you_mean

ONE_SPRITE_SIZE = (0.34, 0.5)  # of the frame's short side
TWO_SPRITE_SIZE = (0.3, 0.38)
MIN_SIDE = 16
_CANDIDATES = 48  # paths drawn at once in the search for two that never meet


@dataclass(frozen=True, kw_only=True)
class SpriteWorldConfig:
    """``size`` is (H, W) in pixels, ``two_sprite_share`` the probability of a second sprite."""

    size: tuple[int, int] = (32, 32)
    num_frames: int = 17
    fps: float = 8.0
    two_sprite_share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < MIN_SIDE:
            raise ConfigError(f"size must be (H, W) of at least {MIN_SIDE} pixels each, got {self.size}")
        at_least(self, 1, "num_frames")
        positive(self, "fps")
        finite(self, "fps")
        is_share(self, "two_sprite_share")
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, got {self.seed}")


class SpriteWorld:
    """Endless clips of one configuration; it keeps no state between calls."""

    def __init__(self, config: SpriteWorldConfig) -> None:
        self.config = config

    def scene(self, index: int, *, split: Split) -> Scene:
        """What clip ``index`` (0, 1, 2, ...) of ``split`` shows."""
        rng = self._rng(index, split, "scene")
        background = draw_background(rng)
        placements: tuple[SpritePlacement, ...]
        if rng.random() < self.config.two_sprite_share:
            placements = self._draw_two(rng, split)
        else:
            placements = self._draw_one(rng, split)
        return Scene(
            background=background, sprites=placements, size=self.config.size, num_frames=self.config.num_frames
        )

    def caption(self, index: int, *, split: Split) -> str:
        """The caption of clip ``index``."""
        return write_caption(self.scene(index, split=split), self._rng(index, split, "caption"))

    def render(self, scene: Scene) -> npt.NDArray[np.uint8]:
        """The frames of a scene, uint8 ``[T,H,W,3]``."""
        frames = np.empty((scene.num_frames, *scene.size, 3), np.uint8)
        _render_into(scene, frames)
        return frames

    def clip(self, index: int, *, split: Split) -> Clip:
        """Clip ``index`` of ``split``, with its caption."""
        scene = self.scene(index, split=split)
        return Clip(
            frames=self.render(scene),
            fps=self.config.fps,
            caption=write_caption(scene, self._rng(index, split, "caption")),
            name=f"{split}-{index:06d}",
        )

    def render_many(self, indices: Iterable[int], split: Split) -> tuple[npt.NDArray[np.uint8], list[str]]:
        """The frames, uint8 ``[N,T,H,W,3]``, and the captions of several clips."""
        wanted = list(indices)
        frames = np.empty((len(wanted), self.config.num_frames, *self.config.size, 3), np.uint8)
        captions = []
        for target, index in zip(frames, wanted, strict=True):
            scene = self.scene(index, split=split)
            _render_into(scene, target)
            captions.append(write_caption(scene, self._rng(index, split, "caption")))
        return frames, captions

    def _rng(self, index: int, split: Split, purpose: str) -> np.random.Generator:
        """One generator a purpose, so that a new draw in scenes leaves the wording of captions alone."""
        splits = get_args(Split)
        if split not in splits:
            raise DataError(f"no split is called {split!r}: {did_you_mean(str(split), splits)}")
        if index < 0:
            raise DataError(f"clips are numbered from 0, got {index}")
        entropy = (self.config.seed, splits.index(split), index, ("scene", "caption").index(purpose))
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))

    def _draw_one(self, rng: np.random.Generator, split: Split) -> tuple[SpritePlacement]:
        pairs = combinations(split)
        sprite, motion = pairs[int(rng.integers(len(pairs)))]
        size = round(min(self.config.size) * float(rng.uniform(*ONE_SPRITE_SIZE)))
        path = draw_paths(motion, self.config.size, size, self.config.num_frames, 1, rng)[0]
        return (_placement(sprite, motion, size, path),)

    def _draw_two(self, rng: np.random.Generator, split: Split) -> tuple[SpritePlacement, SpritePlacement]:
        """Two different sprites whose squares never touch in any frame."""
        pairs = combinations(split)
        short, num_frames = min(self.config.size), self.config.num_frames
        while True:
            first, second = (pairs[int(n)] for n in rng.integers(len(pairs), size=2))
            if first[0] == second[0]:
                continue
            sizes = [round(short * float(s)) for s in rng.uniform(*TWO_SPRITE_SIZE, size=2)]
            ours = draw_paths(first[1], self.config.size, sizes[0], num_frames, _CANDIDATES, rng)
            theirs = draw_paths(second[1], self.config.size, sizes[1], num_frames, _CANDIDATES, rng)
            after = (ours + sizes[0] < theirs).any(axis=2)  # [candidates,T]: a free pixel lies between them
            before = (theirs + sizes[1] < ours).any(axis=2)
            apart: npt.NDArray[np.bool_] = np.logical_and.reduce(after | before, axis=1)
            if apart.any():
                chosen = int(apart.argmax())
                return (
                    _placement(*first, sizes[0], ours[chosen]),
                    _placement(*second, sizes[1], theirs[chosen]),
                )


def _placement(sprite: str, motion: str, size: int, path: npt.NDArray[np.int64]) -> SpritePlacement:
    return SpritePlacement(
        sprite=sprite, motion=motion, size=size, path=tuple((top, left) for top, left in path.tolist())
    )


def _render_into(scene: Scene, frames: npt.NDArray[np.uint8]) -> None:
    """Draw ``scene`` into ``frames``, uint8 ``[T,H,W,3]``."""
    ground = render_background(scene.background, *scene.size)
    frames[:] = (ground + 0.5).astype(np.uint8)
    time = np.arange(scene.num_frames)[:, None, None]
    for placement in scene.sprites:
        picture = sprite_picture(placement.sprite, placement.size)
        path = np.array(placement.path)
        span = np.arange(placement.size)
        rows = (path[:, :1] + span)[:, :, None]
        columns = (path[:, 1:] + span)[:, None, :]
        under = ground[rows, columns]  # [T,s,s,3]
        under *= 1.0 - picture.alpha
        under += picture.color
        under += 0.5
        frames[time, rows, columns] = under.astype(np.uint8)
