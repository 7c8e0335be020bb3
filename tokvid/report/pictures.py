"""Pictures of clips: strips, sheets, side by side, and animations as data URIs.

Everything here takes and gives uint8 RGB arrays; small clips are enlarged by whole factors without smoothing, so
that a pixel stays a square. Nothing here knows where a clip comes from.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from tokvid.errors import ShapeError

Pictures = npt.NDArray[np.uint8]  # [T,H,W,3]
Picture = npt.NDArray[np.uint8]  # [H,W,3]

GAP = 2
PAPER = 255
# An animation on a page is at least this large, in pixels of its shorter side.
VISIBLE = 96


def strip(frames: Pictures, columns: int | None = None, scale: int = 1) -> Picture:
    """The frames [T,H,W,3] of a clip in one row, or in rows of ``columns``; [H',W',3]."""
    check_pictures(frames)
    columns = len(frames) if columns is None else columns
    if columns < 1:
        raise ShapeError(f"columns must be at least 1, got {columns}")
    frames = enlarge(frames, scale)
    rows = [
        np.concatenate(_spaced(list(frames[i : i + columns]), axis=1), axis=1) for i in range(0, len(frames), columns)
    ]
    width = rows[0].shape[1]
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=PAPER) for row in rows]
    return np.concatenate(_spaced(rows, axis=0), axis=0)


def contact_sheet(
    clips: Sequence[Pictures], labels: Sequence[str] | None = None, columns: int | None = None, scale: int = 1
) -> Picture:
    """One strip a clip, one below the other, each with its label above it; [H',W',3]. Clips may differ in size."""
    if not clips:
        raise ShapeError("a contact sheet needs at least one clip")
    if labels is not None and len(labels) != len(clips):
        raise ShapeError(f"a contact sheet needs a label for each clip, got {len(labels)} for {len(clips)}")
    pieces: list[Picture] = []
    for number, clip in enumerate(clips):
        if labels is not None:
            pieces.append(_label(labels[number]))
        pieces.append(strip(clip, columns, scale))
    width = max(piece.shape[1] for piece in pieces)
    padded = [np.pad(p, ((0, GAP), (0, width - p.shape[1]), (0, 0)), constant_values=PAPER) for p in pieces]
    return np.concatenate(padded, axis=0)


def side_by_side(*clips: Pictures) -> Pictures:
    """Clips of one length and height as one clip [T,H,W',3] with gaps between: original beside reconstruction."""
    if not clips:
        raise ShapeError("side_by_side needs at least one clip")
    for clip in clips:
        check_pictures(clip)
        if clip.shape[:2] != clips[0].shape[:2]:
            raise ShapeError(f"clips side by side need one length and height, got {[list(c.shape) for c in clips]}")
    return np.concatenate(_spaced(list(clips), axis=2), axis=2)


def enlarge(frames: Pictures, scale: int) -> Pictures:
    """Each pixel of [T,H,W,3] as a square of ``scale`` by ``scale``."""
    if scale < 1:
        raise ShapeError(f"scale must be at least 1, got {scale}")
    return frames if scale == 1 else frames.repeat(scale, axis=1).repeat(scale, axis=2)


def animated(frames: Pictures, fps: float = 8.0, scale: int | None = None) -> str:
    """The clip [T,H,W,3] as a looping, lossless animated WebP in a data URI.

    ``scale=None`` enlarges by the smallest whole factor that makes its shorter side at least 96 pixels.
    """
    check_pictures(frames)
    if fps <= 0:
        raise ShapeError(f"fps must be positive, got {fps}")
    if scale is None:
        scale = -(-VISIBLE // min(frames.shape[1:3]))
    first, *rest = [Image.fromarray(frame) for frame in enlarge(frames, scale)]
    # Every picture starts at its rounded time, so that rounding to milliseconds does not change the length of the clip.
    starts = [round(1000 * i / fps) for i in range(len(frames) + 1)]
    durations = [end - start for start, end in pairwise(starts)]
    animation: dict[str, Any] = {"save_all": True, "append_images": rest, "duration": durations, "loop": 0}
    buffer = io.BytesIO()
    first.save(buffer, "WEBP", lossless=True, quality=60, method=3, **(animation if rest else {}))
    return data_uri("image/webp", buffer.getvalue())


def still(picture: Picture) -> str:
    """The picture [H,W,3] as a PNG in a data URI."""
    check_pictures(picture[None])
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return data_uri("image/png", buffer.getvalue())


def data_uri(media_type: str, content: bytes) -> str:
    """``content`` as text that a page can hold in place of an address."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def check_pictures(frames: npt.NDArray[Any]) -> None:
    """Raise ShapeError unless ``frames`` is uint8 [T,H,W,3] with at least one frame and one pixel."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ShapeError(f"expected uint8 pictures [T,H,W,3], got {frames.dtype} {list(frames.shape)}")


def _spaced(pieces: Sequence[npt.NDArray[np.uint8]], axis: int) -> list[npt.NDArray[np.uint8]]:
    """``pieces`` with a strip of paper between each two along ``axis``."""
    spaced = [pieces[0]]
    for piece in pieces[1:]:
        shape = list(pieces[0].shape)
        shape[axis] = GAP
        spaced += [np.full(shape, PAPER, np.uint8), piece]
    return spaced


def _label(text: str) -> Picture:
    """``text`` in black on paper; [H,W,3]."""
    font = ImageFont.load_default(size=12)
    _, _, right, bottom = font.getbbox(text or " ")
    image = Image.new("RGB", (int(right) + 6, int(bottom) + 6), (PAPER, PAPER, PAPER))
    ImageDraw.Draw(image).text((2, 2), text, fill=(0, 0, 0), font=font)
    return np.asarray(image, dtype=np.uint8)
