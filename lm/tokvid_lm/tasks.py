"""Which cells of a clip are given: every task over video is one boolean grid ``known`` ``[t,h,w]``.

Text-to-video knows no cell, image-to-video the first latent frame, and so on. What a model is trained on and what a
user asks of it go through the same functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokvid.errors import ModelError, did_you_mean
from tokvid.grid import Grid

VideoTask = Literal["text_to_video", "image_to_video", "continuation", "interpolation", "inpainting", "outpainting"]
VIDEO_TASKS: tuple[VideoTask, ...] = get_args(VideoTask)

Known = npt.NDArray[np.bool_]


def known_cells(task: VideoTask, grid: Grid, noise: npt.NDArray[np.float64]) -> Known:
    """The cells that are given, bool ``[t,h,w]``, drawn with four numbers in [0, 1).

    A task that a clip is too short for (interpolation of two latent frames, say) leaves out what it cannot have; at
    least one cell stays unknown.
    """
    if task not in _TASKS:
        raise ModelError(f"unknown task {task!r}: {did_you_mean(task, _TASKS)}")
    known = np.zeros((grid.t, grid.h, grid.w), bool)
    _TASKS[task](known, noise)
    return known


def first_frames(grid: Grid, count: int) -> Tensor:
    """Known for a continuation of ``count`` latent frames (1: image-to-video), bool ``[t,h,w]``."""
    _check_count(grid, count)
    known = torch.zeros(grid.t, grid.h, grid.w, dtype=torch.bool)
    known[:count] = True
    return known


def both_ends(grid: Grid, count: int = 1) -> Tensor:
    """Known for an interpolation between the first and the last ``count`` latent frames, bool ``[t,h,w]``."""
    _check_count(grid, 2 * count)
    known = first_frames(grid, count)
    known[grid.t - count :] = True
    return known


def inside_box(grid: Grid, top: int, left: int, height: int, width: int) -> Tensor:
    """Known for outpainting: a box of cells in every latent frame, bool ``[t,h,w]``; its inverse is inpainting."""
    if not (top >= 0 and left >= 0 and 0 < height <= grid.h - top and 0 < width <= grid.w - left):
        raise ModelError(f"a box of {height}x{width} cells at row {top}, column {left} does not lie in a {grid} grid")
    known = torch.zeros(grid.t, grid.h, grid.w, dtype=torch.bool)
    known[:, top : top + height, left : left + width] = True
    return known


def _check_count(grid: Grid, count: int) -> None:
    if not 1 <= count < grid.t:
        raise ModelError(f"a {grid} grid has {grid.t} latent frames: 1 to {grid.t - 1} can be given, got {count}")


def _text_to_video(known: Known, noise: npt.NDArray[np.float64]) -> None:
    """Nothing is given."""


def _image_to_video(known: Known, noise: npt.NDArray[np.float64]) -> None:
    known[: min(1, len(known) - 1)] = True


def _continuation(known: Known, noise: npt.NDArray[np.float64]) -> None:
    # One to all but one.
    known[: min(1 + int(noise[0] * (len(known) - 1)), len(known) - 1)] = True


def _interpolation(known: Known, noise: npt.NDArray[np.float64]) -> None:
    known[: min(1, len(known) - 1)] = True
    if len(known) > 2:
        known[-1] = True


def _inpainting(known: Known, noise: npt.NDArray[np.float64]) -> None:
    known[:] = True
    known[_box(known, noise)] = False


def _outpainting(known: Known, noise: npt.NDArray[np.float64]) -> None:
    box = _box(known, noise)
    known[box] = True
    if known.all():
        known[:, -1, -1] = False


def _box(known: Known, noise: npt.NDArray[np.float64]) -> tuple[slice, slice, slice]:
    """A box of a quarter to three quarters of each side, anywhere, through all latent frames."""
    sides = []
    for size, length, place in zip(known.shape[1:], noise[:2], noise[2:], strict=True):
        extent = max(1, round(size * (0.25 + 0.5 * float(length))))
        start = int(float(place) * (size - extent + 1))
        sides.append(slice(start, start + extent))
    return (slice(None), sides[0], sides[1])


_TASKS: dict[str, Callable[[Known, npt.NDArray[np.float64]], None]] = {
    "text_to_video": _text_to_video,
    "image_to_video": _image_to_video,
    "continuation": _continuation,
    "interpolation": _interpolation,
    "inpainting": _inpainting,
    "outpainting": _outpainting,
}
