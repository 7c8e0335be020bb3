"""Clips to codes, or to the latents of a continuous codec, once, before a language model is trained on them.

It knows no language model.

Codes are some hundred times smaller than frames, so that the codes of a whole data set stay in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokvid.data.clip import Clip
from tokvid.data.clip_source import spread
from tokvid.data.clips import ClipArray, ClipSource
from tokvid.errors import DataError, ShapeError
from tokvid.frames import to_model
from tokvid.grid import Grid
from tokvid.runtime import evaluation_mode
from tokvid_lm.code_source import CodeSource
from tokvid_tokenizers import VideoCodec

Progress = Callable[[int, int], None]
_COUNTED = 1024
"""Clips that the statistics of latents are taken from."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CodedClips(CodeSource):
    """Clips of one size as codes, ``[N,K,t,h,w]`` of the smallest integer type that holds them, and N captions.

    ``num_frames``, ``height`` and ``width`` are those of the clips, ``rate`` their frames a second. ``actions`` int64
    ``[N,T-1]``, where all of them have some. ``skipped`` lists (name, reason) of clips that did not load.
    """

    codes: Tensor
    captions: tuple[str, ...]
    num_frames: int
    height: int
    width: int
    codebook_size: int
    rate: float | None = None
    actions: Tensor | None = None
    names: tuple[str, ...] = ()
    """Of the clips, where they are known."""
    skipped: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.codes.ndim != 5 or len(self.codes) != len(self.captions):
            raise ShapeError(
                f"expected codes [N,K,t,h,w] and N captions, got {list(self.codes.shape)} and {len(self.captions)}"
            )
        if self.actions is not None and self.actions.shape != (len(self.codes), self.num_frames - 1):
            raise ShapeError(
                f"{len(self.codes)} clips of {self.num_frames} frames have actions"
                f" [{len(self.codes)},{self.num_frames - 1}], got {list(self.actions.shape)}"
            )

    @property
    def size(self) -> tuple[int, int, int]:
        return self.num_frames, self.height, self.width

    @property
    def fps(self) -> float | None:
        return self.rate

    @property
    def latent_frames(self) -> int:
        return self.grid.t

    @property
    def grid(self) -> Grid:
        """The grid of every clip."""
        t, h, w = self.codes.shape[2:]
        return Grid(t=t, h=h, w=w)

    def grid_of(self, number: int) -> Grid:
        return self.grid

    def codes_of(self, number: int) -> Tensor:
        return self.codes[number].long()

    def fps_of(self, number: int) -> float | None:
        return self.rate

    def num_frames_of(self, number: int) -> int:
        return self.num_frames

    def has_actions(self, number: int) -> bool:
        return self.actions is not None

    def actions_of(self, number: int) -> Tensor:
        assert self.actions is not None
        return self.actions[number]

    def digest(self) -> str:
        digest = hashlib.sha256(self.codes.numpy().tobytes())
        if self.actions is not None:
            digest.update(self.actions.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentClips(CodedClips):
    """Clips as ``latents`` float32 ``[N,C,t,h,w]``; their codes are all 0, the one code that stands for any latent."""

    latents: Tensor

    def digest(self) -> str:
        digest = hashlib.sha256(super().digest().encode())
        digest.update(self.latents.contiguous().numpy().data)
        return digest.hexdigest()

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of each channel, of clips spread over all of them."""
        some = self.latents[list(spread(len(self), _COUNTED))].double().transpose(0, 1).flatten(1)
        return some.mean(1).tolist(), some.std(1).tolist()


def codes_dtype(codebook_size: int) -> torch.dtype:
    """The smallest integer type for codes in [0, codebook_size)."""
    if codebook_size <= 1 << 8:
        return torch.uint8
    return torch.int16 if codebook_size <= 1 << 15 else torch.int32


def encode_clips(
    codec: VideoCodec,
    frames: npt.NDArray[np.uint8],
    *,
    batch_size: int = 64,
    autocast: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Codes ``[N,K,t,h,w]`` on the CPU, of the smallest integer type, of clips uint8 ``[N,T,H,W,3]``; of a continuous
    codec latents float32 ``[N,C,t,h,w]``.

    The codec computes where it is, in evaluation mode, in ``autocast`` if given. ``progress(done, total)`` is called
    after each batch. The same frames and ``batch_size`` give the same codes.
    """
    if frames.ndim != 5 or frames.dtype != np.uint8 or frames.shape[-1] != 3:
        raise ShapeError(f"expected clips uint8 [N,T,H,W,3], got {frames.dtype} {list(frames.shape)}")
    encode, dtype = codec.encode_latents, torch.float32
    if codec.num_codebooks:
        encode, dtype = codec.encode, codes_dtype(codec.codebook_size)
    parts: list[Tensor] = []
    device = next(codec.parameters()).device
    with (
        evaluation_mode(codec),
        torch.inference_mode(),
        torch.autocast(device.type, autocast, enabled=autocast is not None),
    ):
        for start in range(0, len(frames), batch_size):
            batch = to_model(frames[start : start + batch_size]).to(device)
            parts.append(encode(batch).to(dtype).cpu())
            if progress is not None:
                progress(start + len(batch), len(frames))
    return torch.cat(parts)


def code_clips(
    codec: VideoCodec,
    clips: ClipArray | ClipSource,
    *,
    batch_size: int = 64,
    autocast: torch.dtype | None = None,
    progress: Progress | None = None,
) -> CodedClips:
    """Encode clips in memory or, one batch at a time, those of a source: its frames are never all in memory.

    Of a continuous codec they are :class:`LatentClips`.

    Clips that do not load are left out and listed in ``skipped``; :class:`DataError` when none is left.
    """
    total, done = len(clips), 0
    skipped: list[tuple[str, str]] = list(clips.skipped if isinstance(clips, ClipArray) else _named(clips))
    parts: list[Tensor] = []
    kept: list[tuple[str, str, tuple[int, ...]]] = []
    shape: tuple[int, ...] = ()
    for loaded, lost in _batches(clips, batch_size):
        skipped.extend(lost)
        done += len(loaded) + len(lost)
        if loaded:
            kept.extend((clip.caption, clip.name, clip.actions) for clip in loaded)
            frames = np.stack([clip.frames for clip in loaded])
            parts.append(encode_clips(codec, frames, batch_size=batch_size, autocast=autocast))
            shape = frames.shape
        if progress is not None:
            progress(done, total)
    if not kept:
        why = f"; the last: {skipped[-1][0]}: {skipped[-1][1]}" if skipped else ""
        raise DataError(f"no clip is left to encode of {total}{why}")
    captions, names, actions = zip(*kept, strict=True)
    about: dict[str, Any] = {
        "captions": captions,
        "num_frames": shape[1],
        "height": shape[2],
        "width": shape[3],
        "rate": clips.fps,
        "actions": _together(actions, names),
        "names": names,
        "skipped": tuple(skipped),
    }
    found = torch.cat(parts)
    if codec.num_codebooks:
        return CodedClips(codes=found, codebook_size=codec.codebook_size, **about)
    codes = torch.zeros_like(found[:, :1], dtype=torch.uint8)
    return LatentClips(codes=codes, latents=found, codebook_size=1, **about)


def _together(actions: Sequence[tuple[int, ...]], names: Sequence[str]) -> Tensor | None:
    """The actions of all clips ``[N,T-1]``, or None where there are none; DataError where some clips have none."""
    without = [name for name, some in zip(names, actions, strict=True) if not some]
    if len(without) == len(names):
        return None
    if without:
        raise DataError(f"{without[0]} has no actions, but other clips have: give all clips actions, or none")
    return torch.tensor(actions)


def _named(source: ClipSource) -> list[tuple[str, str]]:
    return [(item.name, item.reason) for item in source.skipped]


_Batch = tuple[list[Clip], list[tuple[str, str]]]


def _batches(clips: ClipArray | ClipSource, size: int) -> Iterator[_Batch]:
    """So many clips at a time, and what did not load."""
    if isinstance(clips, ClipArray):
        for start in range(0, len(clips), size):
            part = range(start, min(start + size, len(clips)))
            yield [_clip_of(clips, number) for number in part], []
        return
    loaded: list[Clip] = []
    lost: list[tuple[str, str]] = []
    for result in clips.load_all():
        if isinstance(result, Clip):
            loaded.append(result)
        else:
            lost.append((result.name, result.reason))
        if len(loaded) == size:
            yield loaded, lost
            loaded, lost = [], []
    if loaded or lost:
        yield loaded, lost


def _clip_of(clips: ClipArray, number: int) -> Clip:
    return Clip(frames=clips.frames[number], fps=clips.fps, caption=clips.captions[number], name=clips.names[number])
