"""How near one clip is to another, pixel by pixel (PSNR) and by local structure (SSIM), over uint8 RGB.

Both take pictures, not model frames, so that every codec is measured after the same rounding.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tokvid.errors import ShapeError

Pictures = npt.NDArray[np.uint8]

MAX_PSNR = 100.0
"""What equal clips have, so that means and files stay finite: an error of one level in 150,000 values is less."""
WINDOW = 11  # pixels; the Gaussian window and constants of Wang et al. 2004
_SIGMA = 1.5
_CHUNK = 200_000  # values of a clip filtered at once
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(a: Pictures, b: Pictures) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 ``[T,H,W,3]`` clips; 100 when they are equal, and at most.

    The squared error is averaged over the whole clip before the logarithm. Raises :class:`ShapeError`.
    """
    check_clips(a, b)
    # int32 holds a difference squared, and the sum is taken in int64: exact for any clip.
    difference = a.astype(np.int32) - b.astype(np.int32)
    error = int(np.square(difference, out=difference).sum(dtype=np.int64)) / a.size
    return MAX_PSNR if error == 0 else min(MAX_PSNR, 10.0 * math.log10(255.0**2 / error))


def ssim(a: Pictures, b: Pictures) -> float:
    """Structural similarity in [-1, 1] of two uint8 ``[T,H,W,3]`` clips; 1.0 when they are equal.

    Gaussian window of 11 by 11 pixels (sigma 1.5) where it fits wholly, each channel of each frame for itself, then the
    mean. Raises :class:`ShapeError`, also for pictures smaller than the window.
    """
    check_clips(a, b)
    if min(a.shape[1:3]) < WINDOW:
        raise ShapeError(f"ssim needs pictures of at least {WINDOW}x{WINDOW} pixels, got {a.shape[1]}x{a.shape[2]}")
    # Some frames at a time: five filtered planes of a long clip in float64 would be large.
    step = max(1, _CHUNK // a[0].size)
    total = sum(_ssim_sum(a[first : first + step], b[first : first + step]) for first in range(0, len(a), step))
    return float(total) / len(a)


def _ssim_sum(a: Pictures, b: Pictures) -> float:
    """The sum over frames of the mean over places and channels."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y, xx, yy, xy = _blur(np.stack([x, y, x * x, y * y, x * y]))
    variances = xx - mean_x**2 + yy - mean_y**2
    covariance = xy - mean_x * mean_y
    structure = (2 * covariance + _C2) / (variances + _C2)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return float((structure * luminance).mean(axis=(1, 2, 3)).sum())


def _blur(planes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Filter ``[...,H,W,3]`` with the window, where it fits: rows, then columns."""
    weights = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    height, width = planes.shape[-3] - WINDOW + 1, planes.shape[-2] - WINDOW + 1
    rows: npt.NDArray[np.float64] = sum(w * planes[..., i : i + height, :, :] for i, w in enumerate(weights))
    blurred: npt.NDArray[np.float64] = sum(w * rows[..., i : i + width, :] for i, w in enumerate(weights))
    return blurred


def check_clips(a: Pictures, b: Pictures) -> None:
    """Raise :class:`ShapeError` unless both are uint8 clips ``[T,H,W,3]`` of one shape."""
    for name, pictures in (("the first clip", a), ("the second clip", b)):
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.size == 0:
            raise ShapeError(f"{name} must be uint8 [T,H,W,3], got {pictures.dtype} {list(pictures.shape)}")
    if a.shape != b.shape:
        raise ShapeError(f"the clips must have one shape, got {list(a.shape)} and {list(b.shape)}")
