"""What a clip of the sprite world shows, as plain frozen data: neither drawn nor worded yet."""

from __future__ import annotations

from dataclasses import dataclass

from tokvid.data.sprites.backgrounds import Background


@dataclass(frozen=True, kw_only=True)
class SpritePlacement:
    """One sprite: ``size`` by ``size`` pixels, its top left corner at (top, left) = ``path[t]`` in frame t."""

    sprite: str
    motion: str
    size: int
    path: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip of ``num_frames`` frames of ``size`` (H, W); its sprites never touch each other."""

    background: Background
    sprites: tuple[SpritePlacement, ...]
    size: tuple[int, int]
    num_frames: int
