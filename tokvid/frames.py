"""Between pictures (uint8, ``[T,H,W,3]``) and what a model reads (float ``[B,3,T,H,W]`` in [-1, 1])."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokvid.errors import ShapeError


def to_model(pictures: npt.NDArray[np.uint8]) -> Tensor:
    """Turn uint8 ``[T,H,W,3]`` or ``[B,T,H,W,3]`` into float32 frames ``[B,3,T,H,W]`` in [-1, 1]."""
    if pictures.dtype != np.uint8 or pictures.ndim not in (4, 5) or pictures.shape[-1] != 3:
        raise ShapeError(f"expected uint8 [T,H,W,3] or [B,T,H,W,3], got {pictures.dtype} {list(pictures.shape)}")
    batch = pictures if pictures.ndim == 5 else pictures[None]
    tensor = torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 4, 1, 2, 3)
    return tensor.float().div_(127.5).sub_(1.0)


def to_pictures(frames: Tensor) -> npt.NDArray[np.uint8]:
    """Turn frames ``[B,3,T,H,W]`` into uint8 ``[B,T,H,W,3]``; values outside [-1, 1] are clipped."""
    if frames.ndim != 5 or frames.shape[1] != 3:
        raise ShapeError(f"expected frames [B,3,T,H,W], got {list(frames.shape)}")
    scaled = frames.detach().float().add(1.0).mul_(127.5).round_().clamp_(0, 255)
    array: npt.NDArray[np.uint8] = scaled.to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous().cpu().numpy()
    return array


def check_frames(frames: Tensor, spatial_stride: int) -> None:
    """Raise :class:`ShapeError` unless ``frames`` is a batch a codec of this spatial stride can encode."""
    if not isinstance(frames, torch.Tensor):
        raise ShapeError(f"expected frames as a tensor, got {type(frames).__name__}; use tokvid.frames.to_model")
    if frames.ndim != 5 or frames.shape[1] != 3:
        hint = " (it looks like [B,T,3,H,W]: permute it)" if frames.ndim == 5 and frames.shape[2] == 3 else ""
        raise ShapeError(f"expected frames [B,3,T,H,W], got {list(frames.shape)}{hint}")
    if not frames.is_floating_point():
        raise ShapeError(f"expected float frames in [-1, 1], got {frames.dtype}; use tokvid.frames.to_model")
    if 0 in frames.shape:
        raise ShapeError(f"frames must not be empty, got {list(frames.shape)}")
    height, width = frames.shape[-2:]
    if height % spatial_stride or width % spatial_stride:
        raise ShapeError(
            f"height and width must be multiples of {spatial_stride}, got {height}x{width}; crop or pad the frames"
        )
    low, high = frames.amin(), frames.amax()  # not aminmax, which copies what is not contiguous
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ShapeError("frames hold NaN or infinite values")
    if low < -1.01 or high > 1.01:
        raise ShapeError(f"frames must lie in [-1, 1], got values from {low:.3g} to {high:.3g}")
