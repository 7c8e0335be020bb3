"""The stages of a long command: each is announced, timed, and listed at the end, also where it was stopped and goes on.

What is done in a stage is not known here.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokvid.atomic import write_text

METRICS_FILE, STAGES_FILE = "metrics.json", "stages.json"
"""What a finished and what an interrupted demo have."""


class Stages:
    """``with stages("train the codec"): ...`` prints a heading on stderr and remembers the seconds.

    With a ``file`` they are kept there, and those of an earlier, unfinished run of the same ``work`` are added to. The
    file appears when the first stage is done: what failed before has left nothing that could go on. ``began`` is what
    ``time.perf_counter()`` said when this run began, if that was earlier than now.
    """

    def __init__(
        self, total: int, *, file: Path | None = None, work: Mapping[str, Any] | None = None, began: float | None = None
    ) -> None:
        self.total = total
        self.seconds: dict[str, float] = {}
        self.complete = True
        """False once a run was killed within a stage: nobody knows how long that one had taken."""
        self._file = file
        self._work = hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()
        self._began = time.perf_counter() if began is None else began
        self._earlier = 0.0
        self._count = 0
        self._take_up()

    @contextmanager
    def __call__(self, title: str) -> Iterator[None]:
        """Time one stage."""
        self._count += 1
        print(f"[{self._count}/{self.total}] {title}", file=sys.stderr, flush=True)
        if self._count > 1:
            self._keep(running=title)
        start = time.perf_counter()
        try:
            yield
        except BaseException:
            self._add(title, start)
            if self._count > 1:
                self._keep()
            raise
        self._add(title, start)
        self._keep()

    @property
    def elapsed(self) -> float:
        """Seconds since the first run began, without those between runs."""
        return self._earlier + time.perf_counter() - self._began

    def remove_file(self) -> None:
        """Forget the seconds: the work is finished, and the next run starts anew."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _add(self, title: str, start: float) -> None:
        self.seconds[title] = self.seconds.get(title, 0.0) + time.perf_counter() - start

    def _keep(self, *, running: str | None = None) -> None:
        if self._file is None:
            return
        state = {
            "work": self._work,
            "seconds": self.seconds,
            "elapsed": self.elapsed,
            "complete": self.complete,
            "running": running,
        }
        write_text(self._file, json.dumps(state, indent=2) + "\n")

    def _take_up(self) -> None:
        if self._file is None or not self._file.is_file():
            return
        try:
            state: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
            if state["work"] != self._work:
                return
            self.seconds = {str(title): float(value) for title, value in state["seconds"].items()}
            self._earlier = float(state["elapsed"])
            self.complete = bool(state["complete"]) and state["running"] is None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.complete = False  # somebody else wrote it: that there was a run is all that it says
