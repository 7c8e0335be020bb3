"""A bar for loops that only count: clips loaded, clips encoded, clips drawn. The first process alone shows it."""

from __future__ import annotations

import sys
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
