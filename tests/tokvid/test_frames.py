"""Pictures to frames and back is the identity, and what a codec cannot encode is refused with a hint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokvid.errors import ShapeError
from tokvid.frames import check_frames, to_model, to_pictures


@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
)
@settings(max_examples=50, deadline=None)
def test_the_round_trip_is_exact(seed: int, shape: tuple[int, int, int, int]) -> None:
    pictures = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    frames = to_model(pictures)
    batch, t, height, width = shape
    assert frames.shape == (batch, 3, t, height, width) and frames.dtype == torch.float32
    assert frames.min() >= -1 and frames.max() <= 1
    assert np.array_equal(to_pictures(frames), pictures)
    assert torch.equal(to_model(pictures[0]), frames[:1])


def test_all_levels_survive_and_black_and_white_are_the_ends() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    frames = to_model(levels)
    assert frames.min() == -1.0 and frames.max() == 1.0
    assert np.array_equal(to_pictures(frames)[0], levels)


def test_axes_go_where_they_should() -> None:
    pictures = np.zeros((2, 4, 5, 3), np.uint8)
    pictures[1, 2, 3] = (0, 255, 0)
    frames = to_model(pictures)
    assert frames[0, 1, 1, 2, 3] == 1.0 and (frames == 1.0).sum() == 1


def test_values_outside_are_clipped_and_half_precision_is_taken() -> None:
    frames = torch.tensor([-5.0, -1.0, 0.0, 1.0, 7.0]).repeat(3, 1)[None, :, None, None]
    for dtype in (torch.float32, torch.bfloat16):
        assert to_pictures(frames.to(dtype))[0, 0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_pictures_that_are_views_and_frames_that_need_gradients_are_taken() -> None:
    pictures = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)[:, ::-1, ::2]
    frames = to_model(pictures).requires_grad_()
    assert np.array_equal(to_pictures(frames)[0], pictures)


def test_the_pictures_are_not_changed() -> None:
    pictures = np.full((1, 2, 2, 3), 9, np.uint8)
    to_model(pictures).zero_()
    assert (pictures == 9).all()


@pytest.mark.parametrize(
    "pictures",
    [
        np.zeros((1, 4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((1, 3, 4, 4), np.uint8),
        np.zeros((1, 1, 1, 4, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(pictures: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(ShapeError):
        to_model(pictures)


@pytest.mark.parametrize("shape", [(3, 2, 4, 4), (1, 4, 2, 4, 4), (1, 2, 3, 4, 4)])
def test_other_tensors_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        to_pictures(torch.zeros(shape))


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        (torch.zeros(1, 2, 3, 16, 16), "looks like .*permute"),
        (torch.zeros(3, 2, 16, 16), r"got \[3, 2, 16, 16\]"),
        (torch.zeros(1, 3, 2, 16, 16, dtype=torch.uint8), "to_model"),
        (torch.zeros(1, 3, 0, 16, 16), "must not be empty"),
        (torch.zeros(1, 3, 2, 16, 12), "multiples of 8, got 16x12"),
        (torch.full((1, 3, 2, 16, 16), 3.0), "from 3 to 3"),
        (torch.full((1, 3, 2, 16, 16), float("nan")), "NaN"),
        (torch.full((1, 3, 2, 16, 16), float("inf")), "infinite"),
    ],
)
def test_check_frames_says_what_is_wrong(frames: torch.Tensor, says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        check_frames(frames, 8)


def test_check_frames_lets_good_frames_pass() -> None:
    check_frames(torch.rand(2, 3, 5, 16, 24) * 2 - 1, 8)
    check_frames(torch.ones(1, 3, 1, 7, 7, dtype=torch.bfloat16), 1)
