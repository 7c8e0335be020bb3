"""From a video file to a ``.tokvid`` file and back, through a codec's streams: memory for one block, however long.

An encoding that is interrupted leaves ``NAME.tokvid.parts`` beside the file. The same call goes on from there and gives
the same file as one that was never interrupted.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tokvid.codes_file import CodesFacts, CodesFile
from tokvid.errors import CheckpointError, ModelError, VideoError
from tokvid.frames import to_model, to_pictures
from tokvid.interruption import deferred_interrupt
from tokvid.run_lock import only_run
from tokvid.video import count_frames, iter_video, probe_video, write_pictures
from tokvid_tokenizers.codec import VideoCodec
from tokvid_tokenizers.partial_encoding import PartialEncoding, parts_folder
from tokvid_tokenizers.refiner import Refiner, Refining
from tokvid_tokenizers.streaming import StreamDecoder
from tokvid_tokenizers.tiling import encoder_tiling

Pictures = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]
"""Called with the frames done and the frames in all."""

_KEEP_EVERY = 64
"""Blocks between two states on the disk: what the end of the process costs at most. Ctrl-C and SIGTERM cost nothing."""


def encode_file(
    codec: VideoCodec,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    tile: tuple[int, int] | None = None,
    halo: int | None = None,
    made_by: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> CodesFacts:
    """Encode the video ``source`` into the ``.tokvid`` file ``target``, replacing it.

    ``fps`` and ``size`` (H, W) resample the video as :func:`tokvid.read_video` does. A size off the codec's stride is
    padded by repeating the edge; the file remembers the video's own. ``tile`` and ``halo`` are those of
    :class:`VideoCodec`; where they change codes, ``made_by`` says so. Raises :class:`VideoError` for a source that
    cannot be read, :class:`DataError` when the parts beside ``target`` are of something else, :class:`CheckpointError`
    while another process encodes into it.
    """
    if not codec.num_codebooks:
        raise ModelError("a continuous codec has no codes: a file of them needs another quantizer")
    info = probe_video(source)
    rate = info.fps if fps is None else fps
    if fps is None and not rate:
        raise VideoError(f"{source}: states no frame rate; give fps to read it at")
    height, width = size or (info.height, info.width)
    tiling = encoder_tiling(codec.config, tile, halo)
    seams = {} if tile is None or tiling.exact else {"tile": f"{tile[0]}x{tile[1]}", "halo": tiling.halo}
    facts = CodesFacts(
        codec_id=codec.codec_id,
        codebook_size=codec.codebook_size,
        num_codebooks=codec.num_codebooks,
        temporal_stride=codec.temporal_stride,
        spatial_stride=codec.spatial_stride,
        num_frames=1,
        height=height,
        width=width,
        fps=rate,
        made_by={**(made_by or {}), **seams},
    )
    total = count_frames(info, rate)
    block = codec.config.stream_block * codec.temporal_stride
    with only_run(parts_folder(target)):
        parts = PartialEncoding(Path(target), facts, Path(source), tiling)
        try:
            with codec.stream_encoder(tile=tile, halo=halo) as stream, deferred_interrupt() as interrupted:
                parts.resume(stream)
                pictures = pictures_after(parts.frames, source, rate, size)
                # The first frame alone: then what is pushed is a block, and nothing waits.
                for number, chunk in enumerate(_chunks(pictures, 1 if not parts.frames else block, block), start=1):
                    parts.append(stream.push(_frames(codec, chunk)), len(chunk))
                    stop = interrupted()
                    if stop or number % _KEEP_EVERY == 0:
                        parts.keep(stream)
                    if progress:
                        progress(parts.frames, total)
                    if stop:
                        raise KeyboardInterrupt(f"{parts.frames} frames of {source} are kept: encode it again to go on")
                parts.append(stream.finish(), 0)
            return parts.join()
        finally:
            parts.close()


def decode_file(
    codec: VideoCodec,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    tile: tuple[int, int] | None = None,
    halo: int | None = None,
    refiner: Refiner | None = None,
    metadata: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> CodesFacts:
    """Decode the ``.tokvid`` file ``source`` into the video ``target``, replacing it.

    ``tile`` and ``halo`` are those of :class:`VideoCodec`, and need not be those of the encoding. With a ``refiner`` of
    the codec what decoding lost is drawn on the frames, with seed 0. Raises :class:`ModelError` when another codec made
    the codes, :class:`CheckpointError` for a damaged file.
    """
    file = CodesFile(source)
    facts = file.facts
    if facts.codec_id != codec.codec_id:
        raise ModelError(
            f"{file.path} was encoded with codec {facts.codec_id}, this one is {codec.codec_id}: decode with that one"
        )
    if refiner is not None and refiner.codec is not codec:
        raise ModelError("the refiner is that of another codec object: load it with this one")
    for name in ("codebook_size", "num_codebooks", "temporal_stride", "spatial_stride"):
        if getattr(facts, name) != getattr(codec, name):
            raise CheckpointError(
                f"{file.path} is damaged: its {name} is {getattr(facts, name)}, its codec's {getattr(codec, name)}"
            )
    stream = codec.stream_decoder(tile=tile, halo=halo)

    def pictures() -> Iterator[Pictures]:
        frames: Iterator[Tensor] = itertools.islice(_decoded(stream, codec, file), facts.num_frames)
        if refiner is not None:
            frames = map(Refining(refiner, torch.tensor([0])).push, frames)
        for number, frame in enumerate(frames, start=1):
            yield to_pictures(frame[:, :, None])[0, 0][: facts.height, : facts.width]
            if progress:
                progress(number, facts.num_frames)

    write_pictures(target, pictures(), size=(facts.height, facts.width), fps=facts.fps, metadata=metadata)
    return facts


def pad_to_stride(frames: Tensor, stride: int) -> Tensor:
    """Frames ``[B,3,T,H,W]``, H and W filled up to multiples of ``stride`` by repeating the last row and column."""
    bottom, right = (-side % stride for side in frames.shape[-2:])
    return F.pad(frames, (0, right, 0, bottom, 0, 0), mode="replicate") if bottom or right else frames


def _frames(codec: VideoCodec, chunk: list[Pictures]) -> Tensor:
    weight = next(codec.parameters())
    return pad_to_stride(to_model(np.stack(chunk)), codec.spatial_stride).to(weight)


def _decoded(opened: StreamDecoder, codec: VideoCodec, file: CodesFile) -> Iterator[Tensor]:
    """Frames ``[1,3,H,W]``, one after the other."""
    device = next(codec.parameters()).device
    block = codec.config.stream_block
    with opened as stream:
        for start in [0, *range(1, file.latent_frames, block)]:
            codes = file.read(start, min(start + block if start else 1, file.latent_frames))
            yield from stream.push(torch.from_numpy(codes)[None].to(device)).unbind(2)
        yield from stream.finish().unbind(2)


def pictures_after(
    done: int, source: str | os.PathLike[str], fps: float, size: tuple[int, int] | None
) -> Iterator[Pictures]:
    """The pictures of a video but for the first ``done``, which were read before."""
    # From the last one on, which there is: nothing begins at the very end of a video.
    pictures = iter_video(source, start=max(0, done - 1) / fps, fps=fps, size=size)
    return itertools.islice(pictures, 1 if done else 0, None)


def _chunks(pictures: Iterator[Pictures], first: int, size: int) -> Iterator[list[Pictures]]:
    chunk = list(itertools.islice(pictures, first))
    while chunk:
        yield chunk
        chunk = list(itertools.islice(pictures, size))
