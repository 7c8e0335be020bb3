"""Checks of single settings that many configurations share; each raises :class:`ConfigError` in the same words.

They read fields of a dataclass by name, from its ``__post_init__``, and know nothing of what the fields mean.
"""

from __future__ import annotations

import math

from tokvid.errors import ConfigError


def at_least(config: object, least: float, *names: str) -> None:
    """Each named field of ``config`` is ``least`` or more (NaN is not)."""
    for name in names:
        value = getattr(config, name)
        if not value >= least:
            raise ConfigError(f"{name} must be at least {least}, got {value}")


def positive(config: object, *names: str) -> None:
    """Each named field of ``config`` is above 0 (NaN is not; infinity is)."""
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise ConfigError(f"{name} must be positive, got {value}")


def finite(config: object, *names: str) -> None:
    """Each named field of ``config`` is a number, neither infinite nor NaN."""
    for name in names:
        value = getattr(config, name)
        if not math.isfinite(value):
            raise ConfigError(f"{name} must be finite, got {value}")


def is_share(config: object, *names: str) -> None:
    """Each named field of ``config`` lies in [0, 1]."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} must lie in [0, 1], got {value}")


def is_average(config: object, *names: str) -> None:
    """Each named field of ``config`` (a number or several) is what a moving average may keep: in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        if not all(0 <= share < 1 for share in (value if isinstance(value, tuple) else (value,))):
            raise ConfigError(f"{name} must lie in [0, 1), got {value}: at 1 the average would never move")


def less_than(config: object, name: str, bound: str) -> None:
    """The field ``name`` of ``config`` is not negative and less than its field ``bound``."""
    value, limit = getattr(config, name), getattr(config, bound)
    if not 0 <= value < limit:
        raise ConfigError(f"{name} must be less than {bound} ({limit}) and not negative, got {value}")


def is_line(config: object, *names: str) -> None:
    """Each named field of ``config`` is None or text that a terminal shows in a line."""
    for name in names:
        value = getattr(config, name)
        if not (value is None or value.isprintable()):
            raise ConfigError(f"{name} is a line of text, got {value!r}")
