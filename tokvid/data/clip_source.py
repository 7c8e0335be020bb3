"""The contract of everything that hands out clips: a length, and clip number ``index``.

It knows neither files nor sprites; the sources of :mod:`tokvid.data.clips` keep it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from tokvid.data.clip import Clip
from tokvid.errors import DataError, VideoError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Skipped:
    """A video or clip that gave nothing, and why; ``name`` as the source writes it."""

    name: str
    reason: str


class ClipSource(ABC):
    """Clips of one shape: ``num_frames`` frames of ``size`` (H, W) at ``fps``, numbered from 0."""

    name: str
    size: tuple[int, int]
    num_frames: int
    fps: float

    @abstractmethod
    def __len__(self) -> int:
        """Number of clips."""

    @abstractmethod
    def load(self, index: int) -> Clip:
        """Clip ``index``; IndexError outside ``[0, len)``, VideoError when its file does not decode."""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What was left out when the source was opened, so that it is not among the clips."""
        return ()

    def clip_name(self, index: int) -> str:
        """How clip ``index`` is called where it does not load."""
        return f"{self.name}[{index}]"

    def reshaped(self, size: tuple[int, int], num_frames: int) -> ClipSource:
        """Clips of the same things in another shape; :class:`DataError` from a source that has but one."""
        raise DataError(f"{self.name} has no clips of another size or length than its own")

    def digest(self, *, words: bool = False) -> str:
        """64 hex digits that differ where the clips do, with ``words`` also captions and actions, without loading."""
        shape = (self.name, len(self), self.size, self.num_frames, self.fps)
        return hashlib.sha256(repr(shape).encode()).hexdigest()

    def load_all(self, *, workers: int = 0) -> Iterator[Clip | Skipped]:
        """Every clip in order; one whose file does not decode comes as :class:`Skipped`."""
        return self.load_range(0, len(self), workers=workers)

    def load_range(self, first: int, last: int, *, workers: int = 0) -> Iterator[Clip | Skipped]:
        """:meth:`load_all` of the clips from ``first`` up to, without, ``last``."""
        self._check_range(first, last)
        return in_order(self.load_or_skip, range(first, last), workers=workers)

    def load_or_skip(self, index: int) -> Clip | Skipped:
        """Clip ``index``, or why its file does not decode."""
        try:
            return self.load(index)
        except VideoError as error:
            return Skipped(self.clip_name(index), str(error))

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} holds clips 0 to {len(self) - 1}, got {index}")

    def _check_range(self, first: int, last: int) -> None:
        if not 0 <= first <= last <= len(self):
            raise IndexError(f"{self.name} holds {len(self)} clips, got a range from {first} to {last}")


def in_order(function: Callable[[Item], Result], items: Sequence[Item], *, workers: int) -> Iterator[Result]:
    """``map`` on ``workers`` threads (0: none), keeping the order and at most two results a worker waiting."""
    if workers <= 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[Result]] = []
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def spread(total: int, count: int) -> list[int]:
    """At most ``count`` of the numbers below ``total``, in order and evenly over all: neighbours are alike."""
    taken = min(total, count)
    return [number * total // taken for number in range(taken)]
