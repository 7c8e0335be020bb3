"""PSNR and SSIM against their definitions, written out slowly."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokvid.errors import ShapeError
from tokvid.metrics.psnr_ssim import psnr, ssim


def noisy_pair(seed: int, shape: tuple[int, ...], strength: float) -> tuple[npt.NDArray[np.uint8], ...]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[1], : shape[2]]
    base = 128 + 90 * np.sin(x / 5.0 + rng.random())[..., None] * np.cos(y / 7.0)[..., None] + rng.normal(0, 9, shape)
    return tuple((base + rng.normal(0, s, shape)).clip(0, 255).astype(np.uint8) for s in (0.0, strength))


def slow_ssim(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    """Window by window, as the paper writes it: weighted means, variances and covariance about the mean."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for t in range(a.shape[0]):
        for top in range(a.shape[1] - 10):
            for left in range(a.shape[2] - 10):
                for channel in range(3):
                    x = a[t, top : top + 11, left : left + 11, channel].astype(float)
                    y = b[t, top : top + 11, left : left + 11, channel].astype(float)
                    mx, my = (window * x).sum(), (window * y).sum()
                    vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                    cov = (window * (x - mx) * (y - my)).sum()
                    values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize("strength", [1.0, 10.0, 60.0])
@pytest.mark.parametrize("shape", [(2, 13, 17, 3), (1, 11, 11, 3), (1, 11, 20, 3)])
def test_ssim_is_its_definition(shape: tuple[int, ...], strength: float) -> None:
    a, b = noisy_pair(0, shape, strength)
    assert ssim(a, b) == pytest.approx(slow_ssim(a, b), abs=1e-9)


def test_ssim_of_a_clip_is_the_mean_over_its_frames() -> None:
    # Large enough to be filtered in several pieces, and the number of frames is no multiple of a piece.
    a, b = noisy_pair(1, (7, 160, 200, 3), 20.0)
    assert ssim(a, b) == pytest.approx(np.mean([ssim(a[t : t + 1], b[t : t + 1]) for t in range(7)]), abs=1e-12)


@given(seed=st.integers(0, 1000), strength=st.floats(0.5, 80.0))
@settings(max_examples=25, deadline=None)
def test_psnr_is_its_definition_and_both_are_symmetric(seed: int, strength: float) -> None:
    a, b = noisy_pair(seed, (2, 12, 14, 3), strength)
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    assert psnr(a, b) == pytest.approx(20 * math.log10(255 / math.sqrt(error)))
    assert psnr(a, b) == psnr(b, a)
    assert ssim(a, b) == pytest.approx(ssim(b, a)) and -1 <= ssim(a, b) <= 1


def test_equal_clips() -> None:
    a, _ = noisy_pair(0, (2, 16, 16, 3), 1.0)
    assert psnr(a, a.copy()) == 100.0
    assert ssim(a, a.copy()) == pytest.approx(1.0)


def test_known_values() -> None:
    black, white = (np.full((1, 12, 12, 3), level, np.uint8) for level in (0, 255))
    assert psnr(black, white) == pytest.approx(0.0)
    assert psnr(black, black + 1) == pytest.approx(48.1308, abs=1e-4)
    assert ssim(black, white) == pytest.approx((0.01**2) / (1 + 0.01**2))


def test_more_noise_is_worse() -> None:
    for metric in (psnr, ssim):
        values = [metric(*noisy_pair(3, (2, 32, 32, 3), strength)) for strength in (2.0, 8.0, 32.0)]
        assert values == sorted(values, reverse=True) and values[0] > values[2]


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.zeros((1, 16, 16, 3), np.uint8), np.zeros((2, 16, 16, 3), np.uint8)),
        (np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 16, 16, 3), np.float32)),
        (np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)),
        (np.zeros((0, 16, 16, 3), np.uint8), np.zeros((0, 16, 16, 3), np.uint8)),
    ],
)
def test_what_cannot_be_compared_is_refused(metric, first, second) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ShapeError):
        metric(first, second)


def test_ssim_refuses_pictures_smaller_than_its_window() -> None:
    small = np.zeros((1, 10, 16, 3), np.uint8)
    with pytest.raises(ShapeError, match="at least 11x11 pixels, got 10x16"):
        ssim(small, small)
