"""How many cells stay masked as MaskGIT goes on, and how many are masked in training (Chang et al. 2022, arXiv
2202.04200).

A schedule is the masked share as a function of the progress in [0, 1], from 1 down to 0. Knows no ids and no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from tokvid.config_checks import positive
from tokvid.errors import ConfigError

ScheduleKind = Literal["cosine", "arccos", "linear", "power"]


@dataclass(frozen=True, kw_only=True)
class MaskSchedule:
    """``cosine``: cos(pi/2 r). ``arccos``: arccos(r) 2/pi. ``linear``: 1-r. ``power``: 1-r**exponent."""

    kind: ScheduleKind = "cosine"
    exponent: float = 2.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScheduleKind):
            raise ConfigError(f"a schedule is one of {', '.join(get_args(ScheduleKind))}, got {self.kind!r}")
        positive(self, "exponent")

    def masked_share(self, progress: float) -> float:
        """The share of cells that are masked at ``progress`` in [0, 1], computed in float64."""
        if self.kind == "cosine":
            return math.cos(math.pi / 2 * progress)
        if self.kind == "arccos":
            return math.acos(progress) * 2 / math.pi
        if self.kind == "linear":
            return 1.0 - progress
        return 1.0 - math.pow(progress, self.exponent)

    def counts(self, total: int, steps: int) -> list[int]:
        """How many of ``total`` cells are still masked after each of ``steps`` steps; the last is 0.

        As in google-research/maskgit the share is rounded down and every step reveals a cell; here a step also leaves
        one for each step to come, as far as there are so many cells.
        """
        counts, left = [], total
        for step in range(1, steps + 1):
            wanted = math.floor(total * self.masked_share(step / steps))
            left = 0 if step == steps else max(0, min(left - 1, max(wanted, steps - step)))
            counts.append(left)
        return counts

    def draw(self, noise: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Masked shares in (0, 1] for training: the schedule at progress ``noise``, uniform in [0, 1)."""
        return np.array([self.masked_share(float(value)) for value in np.atleast_1d(noise)])
