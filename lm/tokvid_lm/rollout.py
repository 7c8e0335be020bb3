"""Videos piece by piece: frames as they are done, and videos longer than a model's context, in the memory of one piece.

A long video is drawn in chunks of the length that the model was trained on, each a continuation of the one before. It
knows nothing of how the codes of a chunk are drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokvid.config_checks import at_least
from tokvid.errors import ModelError
from tokvid.grid import Grid
from tokvid_lm.generation import Given, Request, stream_ids
from tokvid_lm.processor import codec_device
from tokvid_lm.samplers.runner import PLAIN, Way
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.tasks import first_frames

if TYPE_CHECKING:
    from tokvid_lm.video_lm import VideoLM

_CHUNK_SEED = 0x9E3779B97F4A7C15 >> 8


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """How a video goes on beyond ``latent_frames``, the length of a chunk (0: the one that the model was trained on).

    ``window``: a chunk begins with the codes of the first ``sinks`` latent frames of the video and of its last
    ``overlap``. The codec decodes one long video, without a seam. ``reencode``: the frames of the last ``overlap``
    latent frames are encoded anew, as the beginning of a clip that they are now (Loong, Wang et al. 2024, arXiv
    2410.02757), so that the first latent frame of a chunk is what the model knows as one.
    """

    kind: Literal["window", "reencode"] = "window"
    latent_frames: int = 0
    overlap: int = 2
    sinks: int = 1

    def __post_init__(self) -> None:
        at_least(self, 0, "latent_frames")
        at_least(self, 1, "overlap", "sinks")

    @property
    def given(self) -> int:
        """Latent frames of a chunk that are given."""
        return self.overlap + (self.sinks if self.kind == "window" else 0)


def stream_frames(
    lm: VideoLM,
    requests: Sequence[Request],
    sampling: Sampling,
    grid: Grid,
    *,
    fps: float | None,
    rollout: Rollout | None = None,
    way: Way = PLAIN,
) -> Iterator[Tensor]:
    """Frames ``[rows,3,T',H,W]`` on the CPU as they are done, of videos of ``grid`` in all.

    By next-token and frame by frame they come whenever a block of the codec's stream (``stream_block`` latent frames)
    is full, at once a chunk at a time. Videos longer than a chunk go on as ``rollout`` says; at most a chunk is held.
    """
    length = _chunk_length(lm, grid, rollout)
    if length < grid.t and lm.vocabulary.num_actions:
        raise ModelError(
            f"videos from actions are drawn in one piece: this one has {grid.t} latent frames, a chunk of the rollout"
            f" {length}"
        )
    run = _Run(lm, requests, sampling, grid, fps, rollout or Rollout(), length, way)
    if run.rollout.kind == "window" or grid.t <= length:
        yield from _decoded(lm, _window_codes(run), skipped=0)
    else:
        yield from _reencoded(run)


@dataclass(frozen=True, eq=False)
class _Run:
    """What stays the same for all chunks; ``length`` latent frames each."""

    lm: VideoLM
    requests: Sequence[Request]
    sampling: Sampling
    grid: Grid
    fps: float | None
    rollout: Rollout
    length: int
    way: Way


def _chunk_length(lm: VideoLM, grid: Grid, rollout: Rollout | None) -> int:
    """The latent frames of a chunk; raises :class:`ModelError` where nothing new would fit into one."""
    if rollout is None:
        return grid.t
    length = rollout.latent_frames or lm.settings.latent_frames
    if not length:
        raise ModelError("nobody said how long the clips were that this model was trained on: give latent_frames")
    if rollout.given >= length:
        raise ModelError(
            f"a chunk of {length} latent frames begins with {rollout.given} given ones, which leaves nothing to draw:"
            " lower overlap or sinks"
        )
    return min(length, grid.t)


def _window_codes(run: _Run) -> Iterator[Tensor]:
    """New codes ``[rows,K,t',h,w]``, whose chunks begin with the first and the last latent frames there are."""
    drawn, given = 0, None
    sinks = last = torch.empty(0)
    while drawn < run.grid.t:
        for codes in _chunk(run, drawn, given):
            yield codes
            sinks = codes[:, :, : run.rollout.sinks] if drawn == 0 else _joined(sinks, codes, run.rollout.sinks)
            last = codes if drawn == 0 else torch.cat([last, codes], dim=2)
            last = last[:, :, -run.rollout.overlap :]
            drawn += codes.shape[2]
        given = torch.cat([sinks, last], dim=2)


def _joined(sinks: Tensor, codes: Tensor, count: int) -> Tensor:
    return torch.cat([sinks, codes], dim=2)[:, :, :count]


def _reencoded(run: _Run) -> Iterator[Tensor]:
    """Frames of chunks that begin with what the last frames are encoded to anew."""
    kept = 1 + (run.rollout.overlap - 1) * run.lm.codec.temporal_stride
    drawn, given = 0, None
    tail = torch.empty(0)
    while drawn < run.grid.t:
        start: list[Tensor] = [] if given is None else [given]
        for piece in _decoded(run.lm, chain(start, _chunk(run, drawn, given)), skipped=kept if start else 0):
            yield piece
            tail = (piece if tail.ndim != 5 else torch.cat([tail, piece], dim=2))[:, :, -kept:]
        drawn += _new_frames(run, given)
        with torch.inference_mode():
            given = run.lm.codec.encode(tail.to(codec_device(run.lm.codec))).cpu()


def _decoded(lm: VideoLM, codes: Iterable[Tensor], *, skipped: int) -> Iterator[Tensor]:
    """Frames of one video of ``codes`` as they come, but the first ``skipped``; no empty pieces."""
    rows = None
    with ExitStack() as stack:
        for part in codes:
            if rows is None:
                rows = len(part)
                decoder = stack.enter_context(lm.codec.stream_decoder(batch_size=rows))
            piece = decoder.push(part.to(codec_device(lm.codec))).cpu()
            if piece.shape[2] > skipped:
                yield piece[:, :, skipped:]
            skipped = max(0, skipped - piece.shape[2])
        piece = decoder.finish().cpu()
        if piece.shape[2] > skipped:
            yield piece[:, :, skipped:]


def _new_frames(run: _Run, given: Tensor | None) -> int:
    """Latent frames that a chunk adds to those given, if the video does not end before."""
    return run.length - (0 if given is None else given.shape[2])


def _chunk(run: _Run, drawn: int, given: Tensor | None) -> Iterator[Tensor]:
    """The new codes of a chunk as they are done; ``drawn`` latent frames of the video are there, ``given`` begin it."""
    lm, grid = run.lm, run.grid
    count = 0 if given is None else given.shape[2]
    chunk = Grid(t=min(run.length, count + grid.t - drawn), h=grid.h, w=grid.w)
    if given is None:
        requests = [replace(request, given=_cut(request.given, chunk)) for request in run.requests]
    else:
        known = first_frames(chunk, count)
        padded = F.pad(given, (0, 0, 0, 0, 0, chunk.t - count))
        requests = [
            replace(request, given=Given(codes=padded[row : row + 1], known=known))
            for row, request in enumerate(run.requests)
        ]
    # Every chunk has noise of its own, also where it begins as another did.
    sampling = replace(run.sampling, seed=run.sampling.seed + drawn * _CHUNK_SEED)
    num_frames = 1 + (chunk.t - 1) * lm.codec.temporal_stride
    size = chunk.h * chunk.w * lm.vocabulary.slots
    samples = torch.arange(len(requests))
    for frame, ids in stream_ids(lm, requests, sampling, chunk, num_frames, fps=run.fps, samples=samples, way=run.way):
        if frame >= count:
            whole = lm.processor.decode_codes(ids[:, : (frame + 1) * size], replace(chunk, t=frame + 1))
            yield whole[:, :, count:]
            count = frame + 1


def _cut(given: Given, chunk: Grid) -> Given:
    """What is given of a video, as far as its first chunk goes."""
    if given.codes is None or given.known is None:
        return given
    if bool(given.known[chunk.t :].any()):
        raise ModelError(
            f"of a video longer than the context, cells can only be given in its first {chunk.t} latent frames"
        )
    return replace(given, codes=given.codes[:, :, : chunk.t], known=given.known[: chunk.t])
