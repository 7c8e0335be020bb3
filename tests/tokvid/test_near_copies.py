"""Which held-out clips count as copies: other encodings and overlapping pieces do, others of the same kind do not."""

from __future__ import annotations

import numpy as np
import pytest

from tokvid.data.clips import SpriteDataConfig, materialise, open_splits
from tokvid.data.near_copies import near_copies


def film(seed: int, frames: int, size: tuple[int, int] = (30, 44)) -> np.ndarray:
    """A window that moves over a picture of coarse noise."""
    height, width = size
    picture = np.random.default_rng(seed).integers(0, 255, (8, 24, 3))
    field = np.kron(picture, np.ones((height // 4, width // 6, 1))).astype(np.uint8)
    return np.stack([field[:height, 2 * t : 2 * t + width] for t in range(frames)])


def test_overlapping_pieces_and_other_encodings_are_copies() -> None:
    shot, other = film(0, 40), film(1, 40)
    noise = np.random.default_rng(2).normal(0, 4, shot.shape)
    again = np.clip(shot + noise, 0, 255).astype(np.uint8)
    train = np.stack([shot[:16], shot[16:32]])
    held_out = np.stack([again[:16], shot[8:24], shot[24:40], other[:16]])
    assert near_copies(train, held_out).tolist() == [True, True, True, False]


@pytest.mark.parametrize("size", [(8, 8), (5, 3), (64, 48)])
def test_any_size_will_do(size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (6, 9, *size, 3), dtype=np.uint8)
    assert near_copies(frames[:4], frames[2:]).tolist() == [True, True, False, False]


def test_flat_pictures_tell_nothing() -> None:
    black = np.zeros((2, 9, 32, 32, 3), np.uint8)
    assert not near_copies(black, black).any()


def test_clips_of_the_sprite_world_are_no_copies_of_each_other() -> None:
    train, held_out = (materialise(s).frames for s in open_splits(SpriteDataConfig(train_clips=400, held_out_clips=60)))
    assert not near_copies(train, held_out).any()
    assert near_copies(train, np.concatenate([held_out[:3], train[7:8]])).tolist() == [False, False, False, True]
