"""What a training run shows and keeps: a progress bar or plain lines, ``log.jsonl``, tensorboard and other boards.

It knows numbers by name and nothing about what is trained. Values may be 0-d tensors: they are summed where they
are and read only when a line is due, so that logging never makes a device wait at every step.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, SupportsFloat

from tokvid.atomic import write_text
from tokvid.boards import Board, TensorBoard, WeightsAndBiases
from tokvid.errors import TrainingError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Number = SupportsFloat  # a float, or a tensor of no dimensions

LOG_FILE = "log.jsonl"
SECONDS_BETWEEN_LINES = 5.0
MOST_LINES = 60


def check_finite(step: int, losses: Mapping[str, Number]) -> None:
    """Raise TrainingError, naming the step and the first part of the loss that is NaN or infinite."""
    for name, value in losses.items():
        number = float(value)
        if not math.isfinite(number):
            raise TrainingError(
                f"step {step}: the loss part '{name}' is {number}; the last checkpoint is untouched:"
                " start a new run with a lower learning rate, or clip gradients"
            )


class TrainingLog:
    """The log of one run, entered with ``with``.

    ``folder`` gets ``log.jsonl`` and ``tensorboard/``; numbers and pictures go to Weights & Biases too where that is
    installed and the environment names a project (WANDB_PROJECT). Steps count from 1 to ``total_steps``; a run resumed
    after ``start_step`` steps drops the lines of later steps, which it is about to repeat. ``unit`` names what
    ``step(amount=...)`` counts, per second. One JSON line is written every ``every`` steps, with means over them: a run
    resumed at a multiple of ``every`` writes the same lines as one never stopped (but for the speeds). With ``silent``,
    for all but the first of several processes, notes are printed and nothing else is done.
    """

    def __init__(
        self,
        folder: str | Path,
        total_steps: int,
        unit: str = "frames/s",
        *,
        start_step: int = 0,
        title: str = "training",
        every: int = 10,
        tensorboard: bool = True,
        silent: bool = False,
        stream: IO[str] | None = None,
    ) -> None:
        if total_steps < 1 or every < 1:
            raise TrainingError(f"total_steps and every must be at least 1, got {total_steps} and {every}")
        self.folder = Path(folder)
        self.total_steps = total_steps
        self.unit = unit
        self.start_step = start_step
        self.title = title
        self.every = every
        self.silent = silent
        self._stream = stream or sys.stderr
        self._wants_tensorboard = tensorboard
        self._boards: list[Board] = []
        self._bar: Any = None
        self._file: IO[str] | None = None
        self._step = start_step
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}
        self._last_means: dict[str, float] = {}
        self._shown: dict[str, float] = {}
        self._unshown: set[str] = set()
        self._amount = 0.0
        self._waited = 0.0

    @property
    def path(self) -> Path:
        """The JSON lines: one object a line, with ``step``, the means, the speed and ``data_wait`` in [0, 1]."""
        return self.folder / LOG_FILE

    def __enter__(self) -> Self:
        if self.silent:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_log(self.path) if line["step"] <= self.start_step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("a", encoding="utf-8")
        if self._wants_tensorboard:
            place, first = self.folder / "tensorboard", self.start_step + 1
            self._boards.append(TensorBoard(place, first_step=first, complain=self.note))
        if WeightsAndBiases.wanted():
            self._boards.append(WeightsAndBiases(self.folder, complain=self.note))
        self._start_showing()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._file is not None:
            self._file.close()
        for board in self._boards:
            board.close()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside counts as waiting for data: ``with log.waiting(): batch = next(batches)``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def step(
        self,
        step: int,
        losses: Mapping[str, Number],
        values: Mapping[str, Number] | None = None,
        amount: float = 0.0,
        details: Mapping[str, Number] | None = None,
    ) -> None:
        """Record finished step ``step`` (from 1): parts of the loss, other values (PSNR, usage), units of work done.

        A value that is missing at some steps is averaged over those that have it. ``details`` go into the files alone.
        """
        if self.silent:
            return
        self._step = step
        self._unshown |= (details or {}).keys()
        for name, value in {**losses, **(values or {}), **(details or {})}.items():
            detached = value.detach() if hasattr(value, "detach") else float(value)
            self._sums[name] = self._sums[name] + detached if name in self._sums else detached
            self._counts[name] = self._counts.get(name, 0) + 1
        self._amount += amount
        if self._bar is not None:
            self._bar.update(1)
        if step % self.every == 0 or step == self.total_steps:
            self._write_line()

    def pictures(self, name: str, pictures: npt.NDArray[np.uint8], step: int | None = None) -> None:
        """Show one picture, uint8 [H,W,3], on every board under ``name``."""
        for board in self._boards:
            board.picture(name, pictures, self._step if step is None else step)

    def note(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    @property
    def last(self) -> dict[str, float]:
        """The means of the newest JSON line."""
        return dict(self._last_means)

    def _start_showing(self) -> None:
        self._began = self._window_began = time.perf_counter()
        self._shown_at = -math.inf
        self._shown_step = self.start_step
        if _is_terminal(self._stream):
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total_steps,
                initial=self.start_step,
                desc=self.title,
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n}/{total} [{elapsed}<{remaining}]{postfix}",
            )

    def _write_line(self) -> None:
        now = time.perf_counter()
        seconds = max(now - self._window_began, 1e-9)
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        speed, wait = self._amount / seconds, min(1.0, self._waited / seconds)
        line: dict[str, Any] = {"step": self._step, **means, self.unit: round(speed, 2), "data_wait": round(wait, 4)}
        assert self._file is not None, "a TrainingLog is used inside its with block"
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for board in self._boards:
            board.scalars({name: value for name, value in line.items() if name != "step"}, self._step)
        # What is measured now and then, as the use of the codebook, stays in sight until it is measured again.
        self._shown |= {name: mean for name, mean in means.items() if name not in self._unshown}
        self._show(self._shown, speed, wait, now)
        self._last_means = means
        self._sums.clear()
        self._counts.clear()
        self._amount = self._waited = 0.0
        self._window_began = now

    def _show(self, means: Mapping[str, float], speed: float, wait: float, now: float) -> None:
        numbers = "  ".join(f"{name} {_short(value)}" for name, value in means.items())
        numbers += f"  {_short(speed)} {self.unit}"
        if wait >= 0.01:
            numbers += f"  data wait {wait:.0%}"
        if self._bar is not None:
            self._bar.set_postfix_str(numbers)
            return
        enough = now - self._shown_at >= SECONDS_BETWEEN_LINES
        enough &= (self._step - self._shown_step) * MOST_LINES >= self.total_steps - self.start_step
        if not (enough or self._step == self.total_steps):
            return
        self._shown_at, self._shown_step = now, self._step
        left = (now - self._began) / max(1, self._step - self.start_step) * (self.total_steps - self._step)
        text = f"{self.title} {self._step}/{self.total_steps}  {numbers}  left {_clock(left)}"
        print(text, file=self._stream, flush=True)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a ``log.jsonl``; a last line torn by a kill is left out. A missing file has no lines."""
    path = Path(path)
    if not path.is_file():
        return []
    lines = []
    *whole, last = path.read_text(encoding="utf-8").split("\n")
    for number, text in enumerate(whole, 1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise TrainingError(f"{path}: line {number} is not JSON; move the file away and resume") from error
    # Every whole line ends in a newline, so what follows the last one is torn.
    del last
    return lines


def _is_terminal(stream: IO[str]) -> bool:
    """A terminal with a width: one that a container gives without one would show an empty bar."""
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):
        return False


def _short(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
