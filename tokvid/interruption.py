"""Ctrl-C that waits for a safe moment: half of an update must never be saved as if it were the whole.

Nothing here knows what is being done, or what is saved when it stops.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C came since the block was entered, to be asked where it is safe to stop.

    A second Ctrl-C raises :class:`KeyboardInterrupt` at once, as it would outside. Outside the main thread, and where
    the process ignores the signal, nothing is changed and the answer stays no.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield lambda: False
        return
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, previous)
