"""Pictures as coloured text: every pixel is there, two a letter."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tokvid.report.half_blocks import half_blocks

_BOX = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m\u2580")


@pytest.mark.parametrize("height", [1, 4, 7])
def test_every_pixel_is_shown(height: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (height, 5, 3), dtype=np.uint8)
    lines = half_blocks(picture, 80)
    boxes = [[tuple(map(int, box)) for box in _BOX.findall(line)] for line in lines]
    assert all(line.endswith("\x1b[0m") for line in lines)
    shown = np.array([[box[part : part + 3] for box in row] for row in boxes for part in (0, 3)], np.uint8)
    assert np.array_equal(shown[:height], picture)
    assert len(shown) == height + height % 2


def test_what_is_too_wide_is_shrunk_and_nothing_is_enlarged() -> None:
    wide = np.full((40, 100, 3), 7, np.uint8)
    lines = half_blocks(wide, 50)
    assert len(lines) == 10 and all(len(_BOX.findall(line)) == 50 for line in lines)
    assert len(half_blocks(wide[:2, :3], 50)) == 1
