"""A clip's codes as a picture: a grid of coloured squares a latent frame, one colour a code.

Nothing here knows a codec: neighbouring codes need not look alike, so their colours are as far apart as can be.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tokvid.errors import ShapeError
from tokvid.report.pictures import PAPER, Picture, contact_sheet

_SMALLEST_WITH_LINES = 4  # pixels of a square's side; below, lines would hide the colours
# Multiples of these, less their whole part, fill a line, a square or a cube evenly, however many there are.
_HUE, _VALUE, _SATURATION = 0.6180339887, 0.7548776662, 0.5698402910


def code_grid(codes: npt.NDArray[Any], codebook_size: int, *, square: int = 12) -> Picture:
    """Codes, integers ``[1,K,t,h,w]``, as uint8 ``[H,W,3]``: a column a latent frame, a row a codebook, a square of
    ``square`` pixels a code. :class:`ShapeError` for anything else, and for codes outside ``[0, codebook_size)``."""
    if codes.ndim != 5 or len(codes) != 1 or 0 in codes.shape or not np.issubdtype(codes.dtype, np.integer):
        raise ShapeError(f"expected the codes of one clip, integers [1,K,t,h,w], got {codes.dtype} {list(codes.shape)}")
    if codes.min() < 0 or codes.max() >= codebook_size:
        raise ShapeError(f"codes lie in [0, {codebook_size}), got {codes.min()} to {codes.max()}")
    if square < 1:
        raise ShapeError(f"square must be at least 1, got {square}")
    squares = code_colours(codes[0]).repeat(square, axis=2).repeat(square, axis=3)
    if square >= _SMALLEST_WITH_LINES:
        squares[:, :, square - 1 :: square] = PAPER
        squares[:, :, :, square - 1 :: square] = PAPER
    return contact_sheet(list(squares))


def code_colours(codes: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A colour for each code of an array of any shape, uint8 ``[...,3]``; those of some thousands all differ."""
    steps = codes.astype(np.float64)
    hue, value, saturation = (steps * part % 1.0 for part in (_HUE, _VALUE, _SATURATION))
    value, saturation = 0.5 + 0.5 * value, 0.4 + 0.6 * saturation
    # Each channel is full in its third of the circle of hues, and fades to what the saturation leaves.
    thirds = np.abs((hue[..., None] * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    colours = value[..., None] * (1 - saturation[..., None] * (1 - thirds.clip(0, 1)))
    shown: npt.NDArray[np.uint8] = (colours * 255).round().astype(np.uint8)
    return shown
