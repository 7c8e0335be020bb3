"""Clips to codes, once, before a language model is trained on them. It knows no language model.

Codes are some hundred times smaller than frames, so that the codes of a whole data set stay in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokvid.data.clip import Clip
from tokvid.data.clips import ClipArray, ClipSource
from tokvid.errors import DataError, ShapeError
from tokvid.frames import to_model
from tokvid.grid import Grid
from tokvid_tokenizers import VideoCodec

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class CodedClips:
    """Clips of one size as codes, ``[N,K,t,h,w]`` of the smallest integer type that holds them, and N captions.

    ``num_frames``, ``height`` and ``width`` are those of the clips. ``skipped`` lists (name, reason) of clips that did
    not load.
    """

    codes: Tensor
    captions: tuple[str, ...]
    num_frames: int
    height: int
    width: int
    codebook_size: int
    fps: float | None = None
    names: tuple[str, ...] = ()
    """Of the clips, where they are known."""
    skipped: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.codes.ndim != 5 or len(self.codes) != len(self.captions):
            raise ShapeError(
                f"expected codes [N,K,t,h,w] and N captions, got {list(self.codes.shape)} and {len(self.captions)}"
            )

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def grid(self) -> Grid:
        """The grid of every clip."""
        t, h, w = self.codes.shape[2:]
        return Grid(t=t, h=h, w=w)

    def grid_of(self, number: int) -> Grid:
        """The grid of a clip: that of all."""
        return self.grid

    def codes_of(self, number: int) -> Tensor:
        """The codes of a clip, int64 ``[K,t,h,w]``."""
        return self.codes[number].long()

    def fps_of(self, number: int) -> float | None:
        """Frames a second, where they are known."""
        return self.fps

    def actions_of(self, number: int) -> Tensor | None:
        """None: clips that are encoded here bring no actions."""
        return None

    def num_frames_of(self, number: int) -> int:
        """T."""
        return self.num_frames

    def digest(self) -> str:
        """64 hexadecimal digits that differ where the codes do."""
        return hashlib.sha256(self.codes.numpy().tobytes()).hexdigest()


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
    """Codes ``[N,K,t,h,w]`` on the CPU, of the smallest integer type, of clips uint8 ``[N,T,H,W,3]``.

    The codec computes where it is, in evaluation mode, in ``autocast`` if given. ``progress(done, total)`` is called
    after each batch. The same frames and ``batch_size`` give the same codes.
    """
    if frames.ndim != 5 or frames.dtype != np.uint8 or frames.shape[-1] != 3:
        raise ShapeError(f"expected clips uint8 [N,T,H,W,3], got {frames.dtype} {list(frames.shape)}")
    grid = codec.grid_for(frames.shape[1], frames.shape[2], frames.shape[3])
    codes = torch.empty(
        len(frames), codec.num_codebooks, grid.t, grid.h, grid.w, dtype=codes_dtype(codec.codebook_size)
    )
    device = next(codec.parameters()).device
    was_training = codec.training
    codec.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, autocast, enabled=autocast is not None):
            for start in range(0, len(frames), batch_size):
                batch = to_model(frames[start : start + batch_size]).to(device)
                codes[start : start + len(batch)] = codec.encode(batch).to(codes.dtype).cpu()
                if progress is not None:
                    progress(start + len(batch), len(frames))
    finally:
        codec.train(was_training)
    return codes


def code_clips(
    codec: VideoCodec,
    clips: ClipArray | ClipSource,
    *,
    batch_size: int = 64,
    autocast: torch.dtype | None = None,
    progress: Progress | None = None,
) -> CodedClips:
    """Encode clips in memory or, one batch at a time, those of a source: its frames are never all in memory.

    Clips that do not load are left out and listed in ``skipped``; :class:`DataError` when none is left.
    """
    total, done = len(clips), 0
    skipped: list[tuple[str, str]] = list(clips.skipped if isinstance(clips, ClipArray) else _named(clips))
    parts: list[Tensor] = []
    captions: list[str] = []
    names: list[str] = []
    shape: tuple[int, ...] = ()
    for frames, words, of_batch, lost in _batches(clips, batch_size):
        skipped.extend(lost)
        done += len(words) + len(lost)
        if len(words):
            names.extend(of_batch)
            parts.append(encode_clips(codec, frames, batch_size=batch_size, autocast=autocast))
            captions.extend(words)
            shape = frames.shape
        if progress is not None:
            progress(done, total)
    if not captions:
        why = f"; the last: {skipped[-1][0]}: {skipped[-1][1]}" if skipped else ""
        raise DataError(f"no clip is left to encode of {total}{why}")
    return CodedClips(
        codes=torch.cat(parts),
        captions=tuple(captions),
        num_frames=shape[1],
        height=shape[2],
        width=shape[3],
        codebook_size=codec.codebook_size,
        fps=clips.fps,
        names=tuple(names),
        skipped=tuple(skipped),
    )


_Batch = tuple[npt.NDArray[np.uint8], list[str], list[str], list[tuple[str, str]]]


def _named(source: ClipSource) -> list[tuple[str, str]]:
    return [(item.name, item.reason) for item in source.skipped]


def _batches(clips: ClipArray | ClipSource, size: int) -> Iterator[_Batch]:
    """Frames ``[n,T,H,W,3]``, captions, names, and what did not load; n is ``size`` but in the last."""
    if isinstance(clips, ClipArray):
        for start in range(0, len(clips), size):
            part = slice(start, start + size)
            yield clips.frames[part], clips.captions[part], clips.names[part], []
        return
    loaded: list[Clip] = []
    lost: list[tuple[str, str]] = []
    for result in clips.load_all():
        if isinstance(result, Clip):
            loaded.append(result)
        else:
            lost.append((result.name, result.reason))
        if len(loaded) == size:
            yield _stacked(loaded, lost)
            loaded, lost = [], []
    if loaded or lost:
        yield _stacked(loaded, lost)


def _stacked(clips: list[Clip], lost: list[tuple[str, str]]) -> _Batch:
    frames = np.stack([clip.frames for clip in clips]) if clips else np.empty((0, 1, 1, 1, 3), np.uint8)
    return frames, [clip.caption for clip in clips], [clip.name for clip in clips], lost
