"""Codes as coloured squares."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tokvid.errors import ShapeError
from tokvid.report.code_grid import code_colours, code_grid
from tokvid.report.pictures import GAP, PAPER


def test_a_column_a_frame_and_a_row_a_codebook() -> None:
    codes = np.arange(2 * 3 * 2 * 4).reshape(1, 2, 3, 2, 4)
    picture = code_grid(codes, 48, square=3)
    colours = code_colours(codes)[0]
    for codebook, frame, y, x in np.ndindex(2, 3, 2, 4):
        top, left = codebook * (6 + GAP) + 3 * y, frame * (12 + GAP) + 3 * x
        assert (picture[top : top + 3, left : left + 3] == colours[codebook, frame, y, x]).all()
    assert (picture[6 : 6 + GAP] == PAPER).all() and (picture[:, 12 : 12 + GAP] == PAPER).all()


def test_large_squares_have_lines_between_them() -> None:
    codes = np.array([[[[[0, 1]]]]])
    picture = code_grid(codes, 2, square=8)
    colours = code_colours(codes)[0, 0, 0, 0]
    assert (picture[:7, :7] == colours[0]).all() and (picture[:7, 8:15] == colours[1]).all()
    assert (picture[:8, 7] == PAPER).all() and (picture[7, :16] == PAPER).all()


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
def test_each_code_has_a_colour_of_its_own(dtype: type[np.integer[Any]]) -> None:
    colours = code_colours(np.arange(4096, dtype=dtype))
    assert colours.dtype == np.uint8 and len(np.unique(colours, axis=0)) == 4096
    near = np.abs(np.diff(colours.astype(int), axis=0)).max(1)
    assert near.min() > 40  # neighbours can be told apart
    assert (colours.max(1) > 120).all() and (colours.min(1) < 200).all()  # neither black nor paper


def test_a_large_code_has_a_colour() -> None:
    assert code_colours(np.array([2**40, 0])).shape == (2, 3)


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (np.zeros((1, 1, 2, 2), int), "one clip"),
        (np.zeros((2, 1, 1, 2, 2), int), "one clip"),
        (np.zeros((1, 1, 0, 2, 2), int), "one clip"),
        (np.zeros((1, 1, 1, 2, 2)), "one clip"),
        (np.full((1, 1, 1, 2, 2), 8), r"lie in \[0, 8\), got 8 to 8"),
        (np.full((1, 1, 1, 2, 2), -1), "got -1"),
    ],
)
def test_what_are_no_codes_is_refused(codes: npt.NDArray[Any], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        code_grid(codes, 8)


def test_a_square_has_a_side() -> None:
    with pytest.raises(ShapeError, match="square must be at least 1"):
        code_grid(np.zeros((1, 1, 1, 1, 1), int), 8, square=0)
