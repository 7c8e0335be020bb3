"""Ctrl-C, and the signal by which schedulers end a job, wait for a safe moment: half of an update must never be saved
as if it were the whole.

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
    """Give a function that says whether Ctrl-C or SIGTERM came since the block was entered, to be asked where it is
    safe to stop.

    A second Ctrl-C does at once what the first would have done outside: it raises :class:`KeyboardInterrupt`. A second
    SIGTERM waits as the first did: schedulers send it to every process, and launchers pass it on to those that already
    have it; who cannot wait has SIGKILL. Outside the main thread, and where the process ignores a signal, nothing is
    changed and the answer stays no.
    """
    came = False
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        if number == signal.SIGINT:
            signal.signal(number, previous[signal.SIGINT])

    # None: a handler that was not set from Python, which could not be put back.
    noted = [number for number, handler in previous.items() if handler not in (None, signal.SIG_IGN)]
    if previous[signal.SIGINT] is signal.SIG_DFL:  # whoever set it wants Ctrl-C to end the process
        noted.remove(signal.SIGINT)
    for number in noted:
        signal.signal(number, note)
    try:
        yield lambda: came
    finally:
        for number in noted:
            signal.signal(number, previous[number])
