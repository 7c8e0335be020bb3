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
# A label is as wide as the sheet's clips, but at least this, in pixels.
LABEL_WIDTH = 320
LABEL_LINES = 3
LABEL_MARGIN = 3
LINE_HEIGHT = 15


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
    """One strip a clip, one below the other, each with its label above it; [H',W',3]. Clips may differ in size.

    A long label is wrapped, and cut after three lines.
    """
    if not clips:
        raise ShapeError("a contact sheet needs at least one clip")
    if labels is not None and len(labels) != len(clips):
        raise ShapeError(f"a contact sheet needs a label for each clip, got {len(labels)} for {len(clips)}")
    strips = [strip(clip, columns, scale) for clip in clips]
    width = max(piece.shape[1] for piece in strips)
    pieces = strips
    if labels is not None:
        width = max(width, LABEL_WIDTH)
        pieces = [piece for label, row in zip(labels, strips, strict=True) for piece in (_label(label, width), row)]
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


def wrapped(text: str, width: int) -> list[str]:
    """``text`` in at most :data:`LABEL_LINES` lines of ``width`` pixels; what is left out is an ellipsis."""
    font = _font()
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:  # a word that is wider than a line goes on in the next
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
        if len(lines) > LABEL_LINES:
            break
    if len(lines) > LABEL_LINES:
        last = lines[LABEL_LINES - 1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        lines = [*lines[: LABEL_LINES - 1], last.rstrip() + "…"]
    return lines


def _label(text: str, width: int) -> Picture:
    """``text`` in black on paper of ``width`` pixels; [H,W,3]."""
    lines = wrapped(text, width - 2 * LABEL_MARGIN)
    image = Image.new("RGB", (width, len(lines) * LINE_HEIGHT + 2), (PAPER, PAPER, PAPER))
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((LABEL_MARGIN, 2 + number * LINE_HEIGHT), line, fill=(0, 0, 0), font=_font())
    return np.asarray(image, dtype=np.uint8)


def _font() -> Any:
    return ImageFont.load_default(size=12)
