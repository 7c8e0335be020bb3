"""From a track, the positions of one thing in every frame, to the name of its motion."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tokvid.data.sprites.motions import DIRECTIONS, MIN_TRAVEL

Floats = npt.NDArray[np.float64]

MOVED = MIN_TRAVEL / 2  # of the frame's side: half of what every moving sprite covers
_MINOR = 0.4  # an axis with less of the other axis' extent is drift, not a diagonal
_STRAIGHT = 0.8  # share of the variance that a straight line at constant speed must explain
_TURNING = 1.5  # a bouncing track is at least this many times as long as its extent
_AXES = ("bounce-upright", "bounce-sideways")


def name_motion(track: npt.ArrayLike, frame: tuple[int, int]) -> str | None:
    """Name the motion of ``track`` ``[T,2]`` of (row, column) pixels in a ``frame`` of (H, W).

    None where it is no motion we know (it jumps, it turns a corner) or there is only one frame.
    """
    path = np.asarray(track, np.float64) / np.array(frame, np.float64)
    if len(path) < 2:
        return None
    path = _without_outliers(path)
    extent = path.max(axis=0) - path.min(axis=0)
    major = int(extent.argmax())
    if extent[major] < MOVED:
        return "stay"
    moving = [axis for axis in (0, 1) if extent[axis] >= max(_MINOR * extent[major], MOVED / 2)]
    if all(_is_straight(path[:, axis]) for axis in moving):
        signs = [0, 0]
        for axis in moving:
            signs[axis] = 1 if path[-1, axis] > path[0, axis] else -1
        return next(name for name, direction in DIRECTIONS.items() if direction == tuple(signs))
    if len(moving) == 1 and _length(path[:, major]) >= _TURNING * extent[major]:
        return _AXES[major]
    return None


def _without_outliers(path: Floats) -> Floats:
    """The running median of three; too short a path is left as it is."""
    if len(path) < 5:
        return path
    middle = np.median(np.stack([path[:-2], path[1:-1], path[2:]]), axis=0)
    smooth: Floats = np.concatenate([path[:1], middle, path[-1:]])
    for end, inner in ((0, (1, 2)), (-1, (-2, -3))):
        # An end has one neighbour only: it may not leave it further than the next step did, plus some play.
        step = np.abs(smooth[inner[0]] - smooth[inner[1]]) + 0.1
        smooth[end] = np.clip(smooth[end], smooth[inner[0]] - step, smooth[inner[0]] + step)
    return smooth


def _is_straight(values: Floats) -> bool:
    time = np.arange(len(values)) - (len(values) - 1) / 2
    centered = values - values.mean()
    total = float(centered @ centered)
    explained = float(time @ centered) ** 2 / float(time @ time)
    return explained >= _STRAIGHT * total


def _length(values: Floats) -> float:
    """Length of the way, where wobbles under a sixth of its extent are no turns."""
    play = (values.max() - values.min()) / 6
    length, turn, peak, sign = 0.0, float(values[0]), float(values[0]), 0
    for value in values.tolist():
        if sign == 0:
            if abs(value - turn) > play:
                sign, peak = (1 if value > turn else -1), value
        elif sign * (value - peak) > 0:
            peak = value
        elif sign * (peak - value) > play:
            length += abs(peak - turn)
            turn, peak, sign = peak, value, -sign
    return length + abs(peak - turn)
