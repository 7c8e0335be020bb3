"""The stages of a long command: each is announced, timed, and listed at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stages:
    """``with stages("train the codec"): ...`` prints a heading on stderr and remembers the seconds."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @contextmanager
    def __call__(self, title: str) -> Iterator[None]:
        """Time one stage."""
        print(f"[{len(self.seconds) + 1}/{self.total}] {title}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        yield
        self.seconds[title] = time.perf_counter() - start

    @property
    def elapsed(self) -> float:
        """Seconds since the first stage could begin."""
        return time.perf_counter() - self._began
