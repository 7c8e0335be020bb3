"""How the training of a codec gets its batches: from clips in memory, or from clips that are loaded as they are needed.

Which clips make the batch of a step is a function of the seed and the step alone, never of the batches before it, so an
interrupted and resumed run sees what one that never stopped saw. Nothing here knows a network or a loss.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from tokvid.config_checks import at_least, finite, positive
from tokvid.data.clip_source import ClipSource, Skipped
from tokvid.data.clips import ClipArray
from tokvid.data.picture_clips import PictureClips
from tokvid.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokvid_tokenizers.training_config import CodecRecipe

Pictures = npt.NDArray[np.uint8]

_BATCHES_AHEAD = 2
_ATTEMPTS = 8  # clips tried for one place in a batch: so many failures in a row are no accident
_CHOICE_OF_BUCKET, _REPLACEMENT = 0, 1  # streams of random numbers, apart from the order of the clips


@dataclass(frozen=True, kw_only=True)
class BucketConfig:
    """Batches of one shape, which some of the steps take.

    ``size`` (H, W), ``num_frames`` and ``batch_size`` are those of the recipe where they are None. ``share`` weighs the
    bucket against the others that are active at a step, those with ``from_step <= step < until_step`` (None: to the
    end). ``pictures`` is a folder of pictures that the bucket takes its clips of one frame from; without it a bucket
    with ``num_frames: 1`` takes single frames of the videos.
    """

    size: tuple[int, int] | None = None
    num_frames: int | None = None
    batch_size: int | None = None
    share: float = 1.0
    from_step: int = 0
    until_step: int | None = None
    pictures: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_frames", "batch_size"):
            if getattr(self, name) is not None:
                at_least(self, 1, name)
        positive(self, "share")
        finite(self, "share")
        at_least(self, 0, "from_step")
        if self.until_step is not None and self.until_step <= self.from_step:
            raise ConfigError(f"until_step must be more than from_step ({self.from_step}), got {self.until_step}")
        if self.pictures is not None and self.num_frames != 1:
            raise ConfigError(f"a bucket of pictures has num_frames: 1, got {self.num_frames}")

    def is_active(self, step: int) -> bool:
        """Whether batch ``step`` (from 0) may be of this bucket."""
        return self.from_step <= step and (self.until_step is None or step < self.until_step)


class Feed(ABC):
    """The batches of one run, entered with ``with``.

    ``digest`` (64 hex digits) differs where the clips do. ``skipped``: the clips that were to be in the newest batch
    and did not decode.
    """

    digest: str
    skipped: tuple[Skipped, ...] = ()

    @abstractmethod
    def batch(self, step: int) -> Pictures:
        """This process's part of batch ``step`` (from 0), uint8 ``[B,T,H,W,3]``."""

    def first_look(self) -> Pictures:
        """Clips like those of the first step, to measure a codec with that is about to be trained."""
        return self.batch(0)

    @abstractmethod
    def close(self) -> None:
        """Let go of what was loaded ahead."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_feed(recipe: CodecRecipe, clips: ClipArray | ClipSource, *, rank: int = 0, processes: int = 1) -> Feed:
    """The batches of ``recipe``: of an array for ``clips: memory``, of a source for ``clips: disk``.

    Process ``rank`` of ``processes`` gets its part of every batch; all take the same bucket in a step.
    :class:`DataError` where there are fewer clips than a batch has, :class:`ConfigError` where a batch does not divide.
    """
    training = recipe.training
    wanted = ClipArray if training.clips == "memory" else ClipSource
    if not isinstance(clips, wanted):
        raise ConfigError(f"training.clips is {training.clips!r}: give a {wanted.__name__}, not {type(clips).__name__}")
    if isinstance(clips, ClipArray):
        order = _Order(recipe.seed, len(clips), training.batch_size, rank, processes, of="the training data")
        return MemoryFeed(clips.frames, order)
    opened = []
    for config in training.buckets or (BucketConfig(),):
        source = _bucket_source(config, clips)
        batch_size, of = config.batch_size or training.batch_size, config.pictures or "the training data"
        order = _Order(recipe.seed, len(source), batch_size, rank, processes, of=of)
        opened.append(_Bucket(config, source, order))
    return SourceFeed(opened, seed=recipe.seed, steps=training.steps, workers=training.loading_workers)


def _bucket_source(config: BucketConfig, clips: ClipSource) -> ClipSource:
    size, num_frames = config.size or clips.size, config.num_frames or clips.num_frames
    if config.pictures is not None:
        return PictureClips(config.pictures, size)
    return clips if (size, num_frames) == (clips.size, clips.num_frames) else clips.reshaped(size, num_frames)


class _Order:
    """Which clips make a batch: each pass over the clips is a new seeded order."""

    def __init__(self, seed: int, count: int, batch_size: int, rank: int, processes: int, *, of: str) -> None:
        if count < batch_size:
            raise DataError(f"a batch needs {batch_size} clips, {of} has {count}; add clips or lower the batch_size")
        if batch_size % processes:
            raise ConfigError(
                f"a batch of {batch_size} clips cannot be shared evenly by {processes} processes;"
                f" make batch_size a multiple of {processes}"
            )
        self._seed, self._count, self._batch_size = seed, count, batch_size
        self.places = range(batch_size)[rank * batch_size // processes : (rank + 1) * batch_size // processes]
        self._newest: tuple[int, npt.NDArray[np.int64]] | None = None  # a pass over millions takes time to shuffle

    def clips(self, step: int) -> npt.NDArray[np.int64]:
        """The numbers of the clips in this process's ``places`` of batch ``step``."""
        # Steps that other buckets take are left out of a pass: nothing depends on how many there were.
        batches_a_pass = self._count // self._batch_size
        number, place = divmod(step, batches_a_pass)
        if self._newest is None or self._newest[0] != number:
            self._newest = number, np.random.default_rng([self._seed, number]).permutation(self._count)
        first = place * self._batch_size
        return np.sort(self._newest[1][first : first + self._batch_size])[self.places.start : self.places.stop]


class MemoryFeed(Feed):
    """Batches of clips in memory, uint8 ``[N,T,H,W,3]``."""

    def __init__(self, frames: Pictures, order: _Order) -> None:
        self._frames, self._order = frames, order
        self.digest = digest_of_clips(frames)

    def batch(self, step: int) -> Pictures:
        return self._frames[self._order.clips(step)]

    def close(self) -> None:
        """The clips belong to the caller."""


@dataclass(frozen=True)
class _Bucket:
    """A bucket with its clips and their order."""

    config: BucketConfig
    source: ClipSource
    order: _Order


@dataclass(frozen=True)
class _Place:
    """What a place in a batch got: a clip, and those tried before it that did not decode."""

    frames: Pictures
    skipped: tuple[Skipped, ...]


class SourceFeed(Feed):
    """Batches of clips that worker threads load ahead of the step that needs them: two batches, or as many as give
    every thread two clips to load.

    A clip that does not decode is listed in ``skipped``, and another takes its place: which one depends on the seed,
    the step and the place alone. Where one after the other does not decode, :class:`DataError` names them.
    """

    def __init__(self, buckets: Sequence[_Bucket], *, seed: int, steps: int, workers: int) -> None:
        self._buckets, self._seed, self._steps = buckets, seed, steps
        fewest = min(len(bucket.order.places) for bucket in buckets)
        self._ahead = max(_BATCHES_AHEAD, -(-2 * workers // fewest))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="clips")
        self._coming: dict[int, list[Future[_Place]]] = {}
        self.digest = hashlib.sha256("".join(bucket.source.digest() for bucket in buckets).encode()).hexdigest()

    def batch(self, step: int) -> Pictures:
        wanted = range(step, max(step + 1, min(step + 1 + self._ahead, self._steps)))
        for number in [number for number in self._coming if number not in wanted]:
            _cancel(self._coming.pop(number))
        for number in wanted:
            if number not in self._coming:
                self._coming[number] = self._load(number, self.bucket(number))
        return self._collected(self._coming.pop(step))

    def bucket(self, step: int) -> int:
        """The number of the bucket that ``step`` takes, the same in every process."""
        active = [number for number, bucket in enumerate(self._buckets) if bucket.config.is_active(step)]
        shares = np.array([self._buckets[number].config.share for number in active])
        chosen = self._random(step, _CHOICE_OF_BUCKET).choice(active, p=shares / shares.sum())
        return int(chosen)

    def first_look(self) -> Pictures:
        """Of the longest clips that the first step may take: a picture says nothing of how things move."""
        active = [number for number, bucket in enumerate(self._buckets) if bucket.config.is_active(0)]
        longest = max(active, key=lambda number: self._buckets[number].source.num_frames)
        return self._collected(self._load(0, longest))

    def close(self) -> None:
        """Stop the threads; what they are at is finished first."""
        self._coming.clear()
        self._pool.shutdown(cancel_futures=True)

    def _load(self, step: int, number: int) -> list[Future[_Place]]:
        bucket = self._buckets[number]
        places = zip(bucket.order.places, bucket.order.clips(step), strict=True)
        return [self._pool.submit(self._fill, step, bucket.source, place, int(clip)) for place, clip in places]

    def _fill(self, step: int, source: ClipSource, place: int, clip: int) -> _Place:
        skipped: list[Skipped] = []
        while len(skipped) < _ATTEMPTS:
            if skipped:
                clip = int(self._random(step, _REPLACEMENT, place, len(skipped)).integers(len(source)))
            result = source.load_or_skip(clip)
            if not isinstance(result, Skipped):
                return _Place(result.frames, tuple(skipped))
            skipped.append(result)
        names = ", ".join(dict.fromkeys(item.name for item in skipped))
        raise DataError(
            f"{source.name}: {_ATTEMPTS} clips in a row do not decode ({names}; the last: {skipped[-1].reason});"
            " is the data still there and whole?"
        )

    def _collected(self, futures: list[Future[_Place]]) -> Pictures:
        try:
            places = [future.result() for future in futures]
        finally:
            _cancel(futures)
        self.skipped = tuple(item for place in places for item in place.skipped)
        return np.stack([place.frames for place in places])

    def _random(self, step: int, *stream: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self._seed, step], spawn_key=stream))


def _cancel(futures: Sequence[Future[_Place]]) -> None:
    for future in futures:
        future.cancel()


def digest_of_clips(frames: Pictures) -> str:
    """SHA-256 (64 hex digits) of clips uint8 ``[N,T,H,W,3]``: their number, shape and every pixel."""
    digest = hashlib.sha256(repr(frames.shape).encode())
    for clip in frames:
        digest.update(np.ascontiguousarray(clip).data)
    return digest.hexdigest()
