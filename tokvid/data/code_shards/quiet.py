"""Nothing on the terminal from ``datasets``: its bars have no place in a verb, and its errors are told by us."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import datasets


@contextmanager
def quiet() -> Iterator[None]:
    """No bar and no log line of ``datasets``; afterwards it is as talkative as before."""
    shown, level = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()
