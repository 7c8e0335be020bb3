"""Flicker and the Fréchet distance of motion: what each sees, and what each does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokvid.data.sprites.world import SpriteWorld, SpriteWorldConfig
from tokvid.errors import ShapeError
from tokvid.frames import to_model
from tokvid.metrics.flicker import flicker
from tokvid.metrics.frechet import efflite_frechet, frechet_distance, is_still, motion_features


def test_flicker_counts_what_changes_alone() -> None:
    rng = np.random.default_rng(0)
    clip = rng.integers(50, 200, (6, 8, 8, 3)).astype(np.uint8)
    assert flicker(clip, clip) == 0
    assert flicker(clip, clip + np.uint8(20)) == 0
    shimmer = clip + np.where(np.arange(6) % 2, 10, 0).astype(np.uint8)[:, None, None, None]
    assert flicker(clip, shimmer) == 10
    assert flicker(clip[:1], shimmer[1:2]) == 0
    with pytest.raises(ShapeError, match="one shape"):
        flicker(clip, clip[:3])


def test_the_distance_of_gaussians_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(20_000, 2)) * [1.0, 2.0]
    other = rng.normal(size=(20_000, 2)) * [3.0, 2.0] + [1.0, 0.0]
    # (1 - 0)^2 + (3 - 1)^2, for Gaussians along the axes
    assert frechet_distance(one, other) == pytest.approx(5.0, rel=0.05)
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.slow
def test_frozen_shuffled_and_blurred_clips_are_further_away_than_other_clips() -> None:
    frames, _ = SpriteWorld(SpriteWorldConfig(size=(64, 64), num_frames=9)).render_many(range(160), "train")
    clips = to_model(frames)
    reference, others = motion_features(clips[:80]), clips[80:]
    assert reference.shape == (80, 160)
    frozen = others[:, :, :1].expand_as(others)
    shuffled = others[:, :, torch.randperm(9, generator=torch.Generator().manual_seed(0))]
    doubled = others[:, :, [0, 0, 2, 2, 4, 4, 6, 6, 8]]
    real = efflite_frechet(reference, motion_features(others))
    for spoiled in (frozen, shuffled, doubled):
        assert efflite_frechet(reference, motion_features(spoiled)) > 1.5 * real


def test_clips_in_which_nothing_moves_have_no_distance_of_motion() -> None:
    frames, _ = SpriteWorld(SpriteWorldConfig(num_frames=4)).render_many(range(6), "train")
    moving = motion_features(to_model(frames))
    for clips in (np.zeros_like(frames), np.repeat(frames[:, :1], 4, axis=1)):
        still = motion_features(to_model(clips))
        assert is_still(still) and not is_still(moving)
        with pytest.raises(ShapeError, match="needs clips in which something moves"):
            efflite_frechet(still, moving)
    assert efflite_frechet(moving, still) > 0


def test_too_little_is_refused() -> None:
    with pytest.raises(ShapeError, match="3 frames or more, got 2"):
        motion_features(torch.zeros(1, 3, 2, 32, 32))
    with pytest.raises(ShapeError, match="two clips"):
        efflite_frechet(np.zeros((1, 160)), np.zeros((5, 160)))
