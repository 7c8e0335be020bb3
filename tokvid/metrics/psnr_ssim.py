"""How near one clip is to another, pixel by pixel (PSNR) and by local structure (SSIM), over uint8 RGB.

Both take pictures, not model frames, so that every codec is measured after the same rounding.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tokvid.errors import ShapeError

Pictures = npt.NDArray[np.uint8]

WINDOW = 11  # pixels; the Gaussian window and constants of Wang et al. 2004
_SIGMA = 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(a: Pictures, b: Pictures) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 ``[T,H,W,3]`` clips; inf when they are equal.

    The squared error is averaged over the whole clip before the logarithm. Raises :class:`ShapeError`.
    """
    _check(a, b)
    # int32 holds a difference squared, and the sum is taken in int64: exact for any clip.
    difference = a.astype(np.int32) - b.astype(np.int32)
    error = int(np.square(difference, out=difference).sum(dtype=np.int64)) / a.size
    return math.inf if error == 0 else 10.0 * math.log10(255.0**2 / error)


def ssim(a: Pictures, b: Pictures) -> float:
    """Structural similarity in [-1, 1] of two uint8 ``[T,H,W,3]`` clips; 1.0 when they are equal.

    Gaussian window of 11 by 11 pixels (sigma 1.5) where it fits wholly, each channel of each frame for itself, then the
    mean. Raises :class:`ShapeError`, also for pictures smaller than the window.
    """
    _check(a, b)
    if min(a.shape[1:3]) < WINDOW:
        raise ShapeError(f"ssim needs pictures of at least {WINDOW}x{WINDOW} pixels, got {a.shape[1]}x{a.shape[2]}")
    # A frame at a time: five filtered planes of a whole clip in float64 would be large.
    return float(np.mean([_ssim_frame(first, second) for first, second in zip(a, b, strict=True)]))


def _ssim_frame(a: Pictures, b: Pictures) -> float:
    import torch
    from torch.nn.functional import conv2d

    kernel = torch.exp(-((torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    kernel /= kernel.sum()
    x, y = (torch.from_numpy(np.ascontiguousarray(p)).permute(2, 0, 1).double() for p in (a, b))
    planes = torch.stack([x, y, x * x, y * y, x * y]).flatten(0, 1)[:, None]  # [5*3,1,H,W]
    planes = conv2d(conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    mean_x, mean_y, xx, yy, xy = planes.unflatten(0, (5, 3))
    variances = xx - mean_x**2 + yy - mean_y**2
    covariance = xy - mean_x * mean_y
    structure = (2 * covariance + _C2) / (variances + _C2)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return float((structure * luminance).mean())


def _check(a: Pictures, b: Pictures) -> None:
    for name, pictures in (("the first clip", a), ("the second clip", b)):
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.size == 0:
            raise ShapeError(f"{name} must be uint8 [T,H,W,3], got {pictures.dtype} {list(pictures.shape)}")
    if a.shape != b.shape:
        raise ShapeError(f"the clips must have one shape, got {list(a.shape)} and {list(b.shape)}")
