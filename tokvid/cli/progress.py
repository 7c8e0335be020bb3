"""A bar for loops that only count: clips loaded, clips encoded, clips drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counted(title: str, unit: str = "clips") -> Iterator[Callable[[int, int], None]]:
    """Give a function ``progress(done, total)`` that draws a bar on a terminal and nothing elsewhere."""
    from tqdm import tqdm

    bar = tqdm(desc=title, unit=f" {unit}", disable=not sys.stderr.isatty(), leave=False, dynamic_ncols=True)

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    try:
        yield progress
    finally:
        bar.close()
