"""How many of how many, with the interval that the share itself may lie in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """``right`` of ``count``, with a Wilson 95 % interval."""

    right: int
    count: int

    @property
    def share(self) -> float:
        """right / count."""
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson score interval at 95 %, within [0, 1] (Wilson 1927)."""
        z, n, p = 1.959964, self.count, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        # Both are exact at the ends, but for rounding.
        return middle - reach if self.right else 0.0, middle + reach if self.right < n else 1.0

    def figures(self) -> dict[str, Any]:
        """For ``metrics.json``."""
        return {"share": self.share, "interval_95": list(self.interval), "right": self.right, "count": self.count}
