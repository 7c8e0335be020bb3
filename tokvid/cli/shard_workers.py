"""Clips to code shards, in this process or in several, each of which writes whole shards of its own.

A process computes on one thread, so the codes do not depend on the number of processes. It ends when the one that
started it does, however that ended: two runs never write to one folder because a killed one left something behind.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

import numpy as np

from tokvid.data.clip import Clip, Split
from tokvid.data.clip_source import ClipSource, Skipped
from tokvid.data.code_shards import CodeRecord, PlannedShard, ShardWriter
from tokvid.errors import ModelError

if TYPE_CHECKING:
    from tokvid_tokenizers import VideoCodec

# Pixels that are encoded at once: 60 clips of 17 frames of 64x64, and never less than a clip.
_PIXELS = 1 << 22
_MOST = 64


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """What every process is told: ``codec`` by name, the clips, and where their shards go.

    ``folder`` is the one that the clips lie in, whose name is nobody's business who gets the shards; or empty.
    """

    codec: str
    sources: dict[Split, ClipSource]
    writer: ShardWriter
    folder: str = ""

    def told(self, skipped: Skipped) -> Skipped:
        """``skipped`` without the folder in its reason."""
        return Skipped(skipped.name, skipped.reason.replace(self.folder + os.sep, "")) if self.folder else skipped


def encode_shards(
    job: ShardJob, shards: Sequence[PlannedShard], *, workers: int, progress: Callable[[int], None]
) -> None:
    """Encode and write ``shards`` in ``workers`` processes; ``progress(clips)`` says how many clips are done."""
    if min(workers, len(shards)) > 1:
        _in_processes(job, shards, min(workers, len(shards)), progress)
        return
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done)

    if shards:
        encoder = _Encoder(job, advance)
        for shard in shards:
            encoder.encode(shard)


class _Encoder:
    """Clips of a job to shards in this process. ``advance`` is called after every clip, and may end it by an error."""

    def __init__(self, job: ShardJob, advance: Callable[[], None]) -> None:
        from tokvid.runtime import default_device, prepare
        from tokvid_tokenizers import load_codec

        prepare(0, threads=1)
        self.job, self.advance = job, advance
        self.codec: VideoCodec = load_codec(job.codec, device=default_device())
        expected = job.writer.plan.codec.codec_id
        if self.codec.codec_id != expected:
            raise ModelError(f"{job.codec} is {self.codec.codec_id} now and was {expected} a moment ago; start again")

    def encode(self, shard: PlannedShard) -> None:
        """Encode the clips of a shard, a batch at a time, and write it."""
        source = self.job.sources[shard.split]
        batch = max(1, min(_MOST, _PIXELS // (source.num_frames * source.size[0] * source.size[1])))
        records: list[CodeRecord] = []
        skipped: list[Skipped] = []
        waiting: list[Clip] = []
        # One thread loads while this one encodes.
        for result in source.load_range(shard.first, shard.last, workers=1):
            if isinstance(result, Skipped):
                skipped.append(self.job.told(result))
            else:
                waiting.append(result)
            if len(waiting) == batch:
                records += self._coded(waiting)
                waiting = []
            self.advance()
        records += self._coded(waiting)
        self.job.writer.write(shard, records, skipped)

    def _coded(self, clips: Sequence[Clip]) -> list[CodeRecord]:
        from tokvid_lm.code_clips import encode_clips

        if not clips:
            return []
        codes = encode_clips(self.codec, np.stack([clip.frames for clip in clips]), batch_size=len(clips)).numpy()
        return [
            CodeRecord(
                codes=of_clip.astype(np.int64),
                name=clip.name,
                caption=clip.caption,
                actions=clip.actions,
                fps=clip.fps,
                num_frames=len(clip.frames),
                height=clip.frames.shape[1],
                width=clip.frames.shape[2],
            )
            for clip, of_clip in zip(clips, codes, strict=True)
        ]


def _in_processes(job: ShardJob, shards: Sequence[PlannedShard], workers: int, progress: Callable[[int], None]) -> None:
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads half
    done, stop = context.Value("q", 0), context.Event()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(job, done, stop)) as pool:
        waiting: set[Future[None]] = {pool.submit(_encode, shard) for shard in shards}
        try:
            while waiting:
                ended, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in ended:
                    future.result()
                progress(done.value)
        except BrokenProcessPool as error:
            raise ModelError(
                "a process that encoded was killed, maybe for want of memory: the same command goes on, with fewer"
                " --workers if that was it"
            ) from error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


class _StoppedError(Exception):
    """The process that started this one does not want the rest."""


_state: dict[str, Any] = {}
"""What a started process was told, and its encoder from the first shard on."""


def _start(job: ShardJob, done: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first process decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _state.update(job=job, done=done, stop=stop)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _encode(shard: PlannedShard) -> None:
    if "encoder" not in _state:  # not in _start, where an error would be lost
        _state["encoder"] = _Encoder(_state["job"], _advance)
    _state["encoder"].encode(shard)


def _advance() -> None:
    with _state["done"].get_lock():
        _state["done"].value += 1
    if _state["stop"].is_set():
        raise _StoppedError
