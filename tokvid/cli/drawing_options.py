"""The options that say how videos are drawn, checked before a model is loaded, which takes a while."""

from __future__ import annotations

import argparse

from tokvid.cli.main import UsageError
from tokvid.errors import ModelError

_OPTIONS = {
    "guidance": "guidance_scale",
    "steps": "steps",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "choice_temperature": "choice_temperature",
    "candidates": "candidates",
}
_LEAST = {"max_words": 1, "seed": 0}


def check_drawing(arguments: argparse.Namespace) -> None:
    """Raise :class:`UsageError` for what no model takes, naming the option; what one model takes it says itself."""
    from tokvid_lm.samplers.sampling import Sampling

    given = {name: value for name, value in vars(arguments).items() if value is not None}
    for name, least in _LEAST.items():
        if given.get(name, least) < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {given[name]}")
    for name in ("mode", *_OPTIONS):
        if name not in given:
            continue
        try:
            if name == "mode":
                Sampling(mode=given[name])
            else:
                Sampling(mode="maskgit").override(**{_OPTIONS[name]: given[name]})
        except ModelError as error:
            raise UsageError(f"--{name.replace('_', '-')}: {error}") from error
