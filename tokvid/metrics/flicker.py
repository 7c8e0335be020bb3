"""What a reconstruction does from frame to frame that its original does not: shimmer that no single frame shows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tokvid.metrics.psnr_ssim import check_clips

Pictures = npt.NDArray[np.uint8]


def flicker(original: Pictures, reconstruction: Pictures) -> float:
    """The mean absolute error of the differences between neighbouring frames, in levels of 255.

    Of two uint8 ``[T,H,W,3]`` clips; 0.0 when every change is right, and for clips of one frame. An error that stands
    still does not count. Raises :class:`ShapeError`.
    """
    check_clips(original, reconstruction)
    if len(original) < 2:
        return 0.0
    error = reconstruction.astype(np.int16) - original.astype(np.int16)
    return float(np.abs(np.diff(error, axis=0)).mean())
