"""What x264 makes of clips at a range of qualities: the yardstick a learned codec is drawn beside.

Bits are those of the H.264 stream itself, without a container and without the text in which x264 names its settings,
which is longer than a short clip; PSNR is over uint8 RGB as everywhere, so x264's halved colours count as the loss
they are.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from tokvid.errors import ShapeError
from tokvid.metrics.psnr_ssim import psnr

Pictures = npt.NDArray[np.uint8]
_SUPPLEMENTAL = 6
CRFS = (18, 23, 28, 33, 38, 43, 48, 51)


@dataclass(frozen=True, kw_only=True)
class RatePoint:
    """Mean bits a pixel and mean PSNR (dB) of clips at one quality, 0 (best) to 51."""

    crf: int
    bits_per_pixel: float
    psnr: float


def x264_curve(clips: Pictures, fps: float, crfs: Sequence[int] = CRFS, preset: str = "medium") -> list[RatePoint]:
    """Encode uint8 clips ``[N,T,H,W,3]`` one by one at each of ``crfs``; sides are even. Raises :class:`ShapeError`."""
    if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3 or 0 in clips.shape:
        raise ShapeError(f"expected uint8 [N,T,H,W,3], got {clips.dtype} {list(clips.shape)}")
    if clips.shape[2] % 2 or clips.shape[3] % 2:
        raise ShapeError(f"x264 with halved colours needs even sides, got {clips.shape[2]}x{clips.shape[3]}")
    points = []
    for crf in crfs:
        coded = [_encode(clip, fps, crf, preset) for clip in clips]
        bits = np.mean([8 * _size(stream) / clips[0, ..., 0].size for stream in coded])
        quality = np.mean([psnr(clip, _decode(stream)) for clip, stream in zip(clips, coded, strict=True)])
        points.append(RatePoint(crf=crf, bits_per_pixel=float(bits), psnr=float(quality)))
    return points


def psnr_at(curve: Sequence[RatePoint], bits_per_pixel: float) -> float | None:
    """The PSNR of a curve at this rate, between its points linear in the logarithm of the rate; None beyond them."""
    points = sorted(curve, key=lambda point: point.bits_per_pixel)
    rates = [point.bits_per_pixel for point in points]
    if not rates[0] <= bits_per_pixel <= rates[-1]:
        return None
    return float(np.interp(np.log(bits_per_pixel), np.log(rates), [point.psnr for point in points]))


def _encode(clip: Pictures, fps: float, crf: int, preset: str) -> bytes:
    target = io.BytesIO()
    # One thread and no macroblock tree: the same clip gives the same bytes.
    options = {"crf": str(crf), "preset": preset, "threads": "1", "x264-params": "no-mbtree=1"}
    with av.open(target, "w", format="h264") as output:
        stream: Any = output.add_stream("libx264", rate=Fraction(fps).limit_denominator(1_000_000), options=options)
        stream.height, stream.width, stream.pix_fmt = clip.shape[1], clip.shape[2], "yuv420p"
        for picture in clip:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return target.getvalue()


def _size(stream: bytes) -> int:
    """Bytes of a stream's units, but for the supplemental ones."""
    # Units follow three bytes 0 0 1; the low five bits of the next byte are their type.
    return sum(3 + len(unit) for unit in stream.split(b"\0\0\1")[1:] if unit[0] & 31 != _SUPPLEMENTAL)


def _decode(stream: bytes) -> Pictures:
    with av.open(io.BytesIO(stream), "r", format="h264") as source:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)])
