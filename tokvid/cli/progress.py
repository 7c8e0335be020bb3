"""A bar for loops that only count: clips loaded, clips encoded, clips drawn. The first process alone shows it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tokvid.processes import is_main_process


@contextmanager
def counted(title: str, unit: str = "clips") -> Iterator[Callable[[int, int], None]]:
    """Give a function ``progress(done, total)`` that draws a bar on a terminal and nothing elsewhere."""
    from tqdm import tqdm

    shown = sys.stderr.isatty() and is_main_process()
    bar = tqdm(desc=title, unit=f" {unit}", disable=not shown, leave=False, dynamic_ncols=True)

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    try:
        yield progress
    finally:
        bar.close()


class Pace:
    """A ``progress(done, total)`` that passes everything on and knows how much was done a second.

    What was done before it was made (by a run that was interrupted, say) does not count.
    """

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self._progress = progress
        self._marks = [(time.perf_counter(), 0)]

    def __call__(self, done: int, total: int) -> None:
        self._marks = [*self._marks[:2], (time.perf_counter(), done)]
        self._progress(done, total)

    @property
    def per_second(self) -> float:
        """Between the first and the last call; of a single call since the beginning."""
        first, last = self._marks[min(1, len(self._marks) - 1)], self._marks[-1]
        if first is last:
            first = self._marks[0]
        seconds = last[0] - first[0]
        return (last[1] - first[1]) / seconds if seconds > 0 else 0.0
