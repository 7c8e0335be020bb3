"""The options that say how videos are drawn, checked before a model is loaded, which takes a while."""

from __future__ import annotations

import argparse
import math

from tokvid.cli.main import UsageError
from tokvid.errors import did_you_mean

_LEAST = {"guidance": 0, "steps": 1, "top_k": 0, "choice_temperature": 0, "max_words": 1, "seed": 0}


def check_drawing(arguments: argparse.Namespace) -> None:
    """Raise :class:`UsageError` for what no model takes, naming the option; what one model takes it says itself."""
    from tokvid_lm.vocabulary import MODES

    if arguments.mode is not None and arguments.mode not in MODES:
        raise UsageError(f"there is no --mode {arguments.mode!r}: {did_you_mean(arguments.mode, MODES)}")
    for name, least in _LEAST.items():
        value = getattr(arguments, name, None)
        if value is not None and not (math.isfinite(value) and value >= least):
            raise UsageError(f"--{name.replace('_', '-')} must be a number of at least {least}, got {value}")
    temperature = arguments.temperature
    if temperature is not None and not (math.isfinite(temperature) and temperature > 0):
        raise UsageError(f"--temperature must be above 0, got {temperature}")
    top_p = getattr(arguments, "top_p", None)
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"--top-p must lie in (0, 1], got {top_p}")
