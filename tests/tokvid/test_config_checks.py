"""Checks of single settings: what passes, what does not, and in which words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tokvid.config_checks import at_least, is_share, less_than, positive
from tokvid.errors import ConfigError


@dataclass(frozen=True)
class Two:
    first: float
    second: float = 1


@pytest.mark.parametrize(
    ("check", "good", "bad", "words"),
    [
        (lambda two: at_least(two, 1, "first"), [1, 7, math.inf], [0, -1, math.nan], "first must be at least 1, got"),
        (lambda two: positive(two, "first"), [1e-9, 3, math.inf], [0, -1.0, math.nan], "first must be positive, got"),
        (lambda two: is_share(two, "first"), [0, 0.5, 1], [-0.1, 1.1, math.nan], r"first must lie in \[0, 1\], got"),
        (lambda two: less_than(two, "first", "second"), [0, 0.5], [-1, 1, math.nan], r"first must be less than second"),
    ],
)
def test_a_setting_passes_or_is_named(
    check: Callable[[Any], None], good: list[float], bad: list[float], words: str
) -> None:
    for value in good:
        check(Two(value))
    for value in bad:
        with pytest.raises(ConfigError, match=f"^{words}.*{value}"):
            check(Two(value))


def test_every_name_is_looked_at() -> None:
    with pytest.raises(ConfigError, match=r"^second must be"):
        at_least(Two(1, 0), 1, "first", "second")
    with pytest.raises(ConfigError, match=r"^second must be"):
        positive(Two(1, 0), "first", "second")
