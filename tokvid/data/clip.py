"""One captioned clip, the unit that every source of data hands out. It knows no file and no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "held_out"]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip with its caption.

    ``frames`` is uint8 ``[T,H,W,3]`` RGB, ``fps`` frames a second, ``name`` is unique within its source. ``actions``
    holds what was done between each frame and the next, T-1 numbers from 0 on, or nothing where nobody wrote it down.
    """

    frames: npt.NDArray[np.uint8]
    fps: float
    caption: str
    name: str
    actions: tuple[int, ...] = ()
