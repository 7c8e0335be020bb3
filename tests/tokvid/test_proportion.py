"""The interval of a share."""

from __future__ import annotations

import pytest

from tokvid.metrics.proportion import Proportion


def test_wilson_intervals() -> None:
    assert Proportion(right=0, count=10).interval == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert Proportion(right=0, count=500).interval[0] == 0.0 and Proportion(right=500, count=500).interval[1] == 1.0
    assert Proportion(right=50, count=100).interval == pytest.approx((0.4038, 0.5962), abs=1e-4)
