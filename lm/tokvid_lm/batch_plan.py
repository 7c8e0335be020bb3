"""Which samples make each batch of a run: stage after stage of the curriculum, one document a row or packed rows.

The plan is a function of the recipe, the seed and the lengths of the documents alone, so that a resumed run goes on
with the batches that the interrupted one would have seen. Nothing here knows ids or a model.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from tokvid.errors import DataError

Row = tuple[int, ...]
"""The samples of one row, in their order."""

_WINDOW_ROWS = 16  # rows that are packed at a time, at least: more fill better, fewer keep samples nearer to their turn


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one forward pass, and how many latent frames of their clips are seen (None: all)."""

    rows: tuple[Row, ...]
    latent_frames: int | None = None

    @property
    def samples(self) -> tuple[int, ...]:
        """All samples, row by row."""
        return tuple(sample for row in self.rows for sample in row)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """``batches`` of ``rows`` rows each."""

    batches: int
    rows: int
    latent_frames: int | None = None


class BatchPlan(Dataset[Batch]):
    """Every batch of a run in order. ``pack`` 0: one document a row; else up to ``pack`` ids of whole documents a row.

    Batch n holds samples of part ``n % parts``, which are those whose number leaves that remainder; ``parts`` divides
    the batches of every stage. ``length(sample, latent_frames)`` is the length of a document; it is asked for packed
    rows alone.
    """

    def __init__(
        self, stages: list[Stage], *, pack: int, length: Callable[[int, int | None], int], seed: int, parts: int = 1
    ) -> None:
        self._parts = parts
        self._stages = [stage for stage in stages if stage.batches]
        self._pack, self._length, self._seed = pack, length, seed
        self._planned: list[Batch] = []
        self._batches = self._plan()

    def __len__(self) -> int:
        return sum(stage.batches for stage in self._stages)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"the run has batches 0 to {len(self) - 1}, got {index}")
        while len(self._planned) <= index:
            self._planned.append(next(self._batches))
        return self._planned[index]

    def _plan(self) -> Iterator[Batch]:
        samples = list(range(self._parts))  # the next one of each part
        for stage in self._stages:
            rows = [
                self._packed(first, stage)
                if self._pack
                else ((sample,) for sample in itertools.count(first, self._parts))
                for first in samples
            ]
            for number in range(stage.batches):
                part = number % self._parts
                batch = Batch(rows=tuple(itertools.islice(rows[part], stage.rows)), latent_frames=stage.latent_frames)
                samples[part] = max(samples[part], *(sample + self._parts for sample in batch.samples))
                yield batch

    def _packed(self, first: int, stage: Stage) -> Iterator[Row]:
        """Rows of a stage from sample ``first`` on.

        Documents are taken in turn until they would fill a window of rows, the longest are placed first, each in the
        row where it leaves least room (best fit decreasing), and full rows come in a drawn order. The samples of rows
        that are not well filled are packed again with the next window; but half of the rows go out in any case, those
        of the samples that wait longest: documents that nothing fits beside would wait for ever, and take the place of
        others.
        """
        window = max(_WINDOW_ROWS, 4 * stage.rows)
        waiting: list[tuple[int, int]] = []
        sample, turn = first, 0
        while True:
            total = sum(length for length, _ in waiting)
            while total < window * self._pack:
                length = self._length(sample, stage.latent_frames)
                if length > self._pack:
                    raise DataError(f"a document of {length} ids does not fit a packed row of {self._pack}: raise pack")
                waiting.append((length, sample))
                total += length
                sample += self._parts
            rows = best_fit_decreasing(waiting, self._pack)
            full: list[list[tuple[int, int]]] = []
            others: list[list[tuple[int, int]]] = []
            for row in rows:
                (full if sum(length for length, _ in row) > 0.9 * self._pack else others).append(row)
            others.sort(key=lambda row: min(number for _, number in row))
            full += others[: max(0, (len(rows) + 1) // 2 - len(full))]
            taken = {number for row in full for _, number in row}
            waiting = [item for item in waiting if item[1] not in taken]
            for place in np.random.default_rng([self._seed, first, turn]).permutation(len(full)):
                yield tuple(sorted(number for _, number in full[place]))
            turn += 1


def best_fit_decreasing(items: list[tuple[int, int]], room: int) -> list[list[tuple[int, int]]]:
    """Bins of (length, number) with at most ``room`` in each: the longest first, each where it leaves least room."""
    bins: list[list[tuple[int, int]]] = []
    free: list[tuple[int, int]] = []  # what is left in each bin and its number, in order
    for item in sorted(items, key=lambda item: (-item[0], item[1])):
        place = bisect_left(free, (item[0], -1))
        if place == len(free):
            left, number = room, len(bins)
            bins.append([])
        else:
            left, number = free.pop(place)
        bins[number].append(item)
        insort(free, (left - item[0], number))
    return bins
