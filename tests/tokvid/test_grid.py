"""The arithmetic of lengths: every frame has its latent frame, and only the right lengths decode."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokvid.errors import ShapeError
from tokvid.grid import Grid, check_num_frames, latent_frames

STRIDES = st.integers(1, 16)


@given(num_frames=st.integers(1, 500), stride=STRIDES)
def test_latent_frames_counts_the_groups(num_frames: int, stride: int) -> None:
    # The definition, group by group: the first frame alone, then groups of `stride`, the last one perhaps part full.
    groups, left = 1, num_frames - 1
    while left > 0:
        groups, left = groups + 1, left - stride
    assert latent_frames(num_frames, stride) == groups


@given(t=st.integers(1, 60), stride=STRIDES)
def test_exactly_the_lengths_of_the_last_group_pass(t: int, stride: int) -> None:
    longest = 1 + (t - 1) * stride
    accepted = []
    for num_frames in range(-1, longest + stride + 2):
        try:
            check_num_frames(num_frames, t, stride)
        except ShapeError:
            continue
        accepted.append(num_frames)
    assert accepted == ([1] if t == 1 else list(range(2 + (t - 2) * stride, longest + 1)))


def test_the_error_says_what_fits() -> None:
    with pytest.raises(ShapeError, match=r"5 latent frames at temporal stride 4 hold 14 to 17 frames, got .*18"):
        check_num_frames(18, 5, 4)
    with pytest.raises(ShapeError, match="1 latent frames at temporal stride 4 hold 1 to 1 frames"):
        check_num_frames(2, 1, 4)


@given(t=st.integers(1, 9), h=st.integers(1, 9), w=st.integers(1, 9))
def test_a_grid(t: int, h: int, w: int) -> None:
    grid = Grid(t=t, h=h, w=w)
    assert grid.cells == sum(1 for _ in range(t) for _ in range(h) for _ in range(w))
    assert str(grid) == f"{t}x{h}x{w}"


@pytest.mark.parametrize("size", [{"t": 0, "h": 1, "w": 1}, {"t": 1, "h": -1, "w": 1}, {"t": 1, "h": 1, "w": 0}])
def test_an_empty_grid_is_refused(size: dict[str, int]) -> None:
    with pytest.raises(ShapeError):
        Grid(**size)


@pytest.mark.parametrize("num_frames", [0, -3])
def test_no_frames_are_refused(num_frames: int) -> None:
    with pytest.raises(ShapeError, match="at least one frame"):
        latent_frames(num_frames, 4)
