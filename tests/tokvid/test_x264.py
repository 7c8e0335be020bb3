"""The yardstick: more bits are nearer, the same again, and what it cannot take is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tokvid.data.sprites.world import SpriteWorld, SpriteWorldConfig
from tokvid.errors import ShapeError
from tokvid.metrics.x264 import psnr_at, x264_curve


def test_more_bits_are_nearer() -> None:
    clips, _ = SpriteWorld(SpriteWorldConfig(size=(64, 64), num_frames=9)).render_many(range(4), "train")
    curve = x264_curve(clips, 8.0, crfs=(10, 25, 40))
    assert [point.crf for point in curve] == [10, 25, 40]
    for better, worse in itertools.pairwise(curve):
        assert better.bits_per_pixel > worse.bits_per_pixel and better.psnr > worse.psnr + 1
    # Colours at half the resolution bound what a small bright sprite can be.
    assert 25 < curve[0].psnr < 60 and 0.001 < curve[2].bits_per_pixel < curve[0].bits_per_pixel < 8
    assert x264_curve(clips, 8.0, crfs=(10, 25, 40)) == curve
    between = psnr_at(curve, (curve[0].bits_per_pixel * curve[1].bits_per_pixel) ** 0.5)
    assert between == pytest.approx((curve[0].psnr + curve[1].psnr) / 2)
    assert psnr_at(curve, curve[0].bits_per_pixel * 1.01) is None


@pytest.mark.parametrize("shape", [(1, 3, 15, 16, 3), (1, 3, 16, 16), (0, 3, 16, 16, 3)])
def test_what_it_cannot_take_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        x264_curve(np.zeros(shape, np.uint8), 8.0)
