"""Video files in and out: uint8 RGB pictures at a steady frame rate, whatever the container holds.

``read_video`` and ``iter_video`` resample by timestamps, turn pictures upright, resize and crop, and enter a long
file by seeking; ``write_video`` writes H.264 (mp4, mov, mkv) or VP9 (webm) with metadata. It needs numpy and PyAV
only and knows no model: ``tokvid.frames`` goes on from here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from tokvid.atomic import atomic_path
from tokvid.errors import DataError, ShapeError, VideoError, did_you_mean
from tokvid.video_source import SCALING, Crop, Fitter, VideoSource

Pictures = npt.NDArray[np.uint8]

# A picture counts as on screen from a quarter of a frame before its timestamp: containers round timestamps (Matroska
# to whole milliseconds), and reading at the stored rate must give every picture once. And a little more: else at 20 of
# 25 or 24 of 30 frames a second some frames fall on the very edge, and the rounding of sums would choose their picture.
_EARLY = 0.25 + 1e-6
_BT601 = 5  # the matrix that players assume for small pictures; the file is tagged with it as well
# Slower, time does not fit into the containers' integers; faster, Matroska's milliseconds run together.
_FILE_RATES = (0.001, 1000.0)
_CONTAINERS = {
    ".mp4": ("mp4", "libx264"),
    ".m4v": ("mp4", "libx264"),
    ".mov": ("mov", "libx264"),
    ".mkv": ("matroska", "libx264"),
    ".webm": ("webm", "libvpx-vp9"),
}
_CODEC_OPTIONS = {
    # x264's macroblock tree reads memory that nothing was written to: the same small pictures (32 and 48 pixels were
    # measured) gave up to 25 different files in 250.
    "libx264": {"x264-params": "no-mbtree=1"},
    "libvpx-vp9": {"b": "0"},
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Video:
    """Pictures at a steady rate: ``frames`` is uint8 ``[T,H,W,3]`` RGB, ``fps`` frames a second."""

    frames: Pictures
    fps: float

    def __post_init__(self) -> None:
        frames = self.frames
        if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
            kind = frames.dtype if isinstance(frames, np.ndarray) else type(frames).__name__
            raise ShapeError(f"video frames must be a uint8 array [T,H,W,3], got {kind}")
        if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
            raise ShapeError(f"video frames must be [T,H,W,3] and not empty, got {list(frames.shape)}")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ShapeError(f"fps must be a positive number, got {self.fps}")

    @property
    def num_frames(self) -> int:
        """T."""
        return int(self.frames.shape[0])

    @property
    def height(self) -> int:
        """H in pixels."""
        return int(self.frames.shape[1])

    @property
    def width(self) -> int:
        """W in pixels."""
        return int(self.frames.shape[2])

    @property
    def duration_s(self) -> float:
        """Seconds the video lasts."""
        return self.num_frames / self.fps


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a file holds, without decoding more than its first picture.

    ``width`` and ``height`` are those of the upright picture; ``rotation`` says by how many degrees clockwise
    (0, 90, 180, 270) the stored picture is turned for that. ``fps`` is the mean rate (0.0 where the file states none),
    ``num_frames`` the stated number of stored pictures or None. Names in ``metadata`` are in lower case.
    """

    width: int
    height: int
    fps: float
    duration_s: float
    num_frames: int | None
    codec: str
    rotation: int
    metadata: dict[str, str] = field(default_factory=dict)


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Describe a file; :class:`VideoError` when it is missing, empty, broken or has no video in it."""
    with VideoSource(path) as source:
        first = next(source.frames_from(0.0), None)
        if first is None:
            raise VideoError(f"{source.path}: holds no picture that can be decoded; the file is cut short or broken")
        orientation = source.orientation(first.frame)
        height, width = first.frame.height, first.frame.width
        if orientation.transpose:
            height, width = width, height
        return VideoInfo(
            width=width,
            height=height,
            fps=source.rate or 0.0,
            num_frames=source.stream.frames or None,
            codec=source.stream.codec_context.name,
            rotation=orientation.rotation,
            metadata=source.metadata,
            duration_s=source.stated_end or source.measured_end(),
        )


def count_frames(info: VideoInfo, fps: float) -> int:
    """How many frames :func:`read_video` gives for the whole file at ``fps``, by what the file states."""
    return max(0, math.ceil((info.duration_s - _early(fps, info.fps)) * fps))


def check_window(start: float, end: float | None) -> None:
    """Raise :class:`DataError` unless ``start`` and ``end`` (None: that of the video), in seconds, are a window."""
    if not math.isfinite(start) or start < 0 or (end is not None and not start < end < math.inf):
        raise DataError(f"a window of a video begins at 0 s or later and has an end after it, got {start} to {end}")


def read_video(
    path: str | os.PathLike[str],
    *,
    start: float = 0.0,
    duration: float | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    crop: Crop = "center",
) -> Video:
    """Read a file, or the window of it that begins at ``start`` seconds, into memory.

    The window is ``duration`` seconds or ``num_frames`` frames long (not both), else it reaches to the end. Frame ``k``
    is the picture on screen at ``start + k / fps``; without ``fps`` the file's mean rate is taken. ``size`` (H, W)
    resizes: ``crop="center"`` keeps the aspect, covers the size and cuts the centre, ``"none"`` stretches.
    Raises :class:`VideoError` for a file that cannot be read or ends before the window does, :class:`ShapeError` for
    impossible arguments.
    """
    window = _Window(start=start, duration=duration, num_frames=num_frames, fps=fps, size=size, crop=crop)
    with VideoSource(path) as source:
        rate = window.rate(source)
        count = window.count(rate)
        pictures = _pictures(source, window, rate, count)
        if count is None:
            return Video(frames=np.stack(list(pictures)), fps=rate)
        first = next(pictures)
        frames = np.empty((count, *first.shape), np.uint8)
        frames[0] = first
        for index, picture in enumerate(pictures, start=1):
            frames[index] = picture
        return Video(frames=frames, fps=rate)


def iter_video(
    path: str | os.PathLike[str],
    *,
    start: float = 0.0,
    duration: float | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    crop: Crop = "center",
) -> Iterator[Pictures]:
    """Yield the frames of :func:`read_video` one at a time, uint8 ``[H,W,3]``; memory does not grow with the file.

    A picture that is on screen for several frames is yielded as the same array: copy it before you change it.
    """
    window = _Window(start=start, duration=duration, num_frames=num_frames, fps=fps, size=size, crop=crop)
    return _iterate(path, window)


def check_destination(path: str | os.PathLike[str], fps: float) -> None:
    """Raise what :func:`write_video` would for this name and rate: before pictures are made that nobody can write.

    :class:`VideoError` for a suffix that names no container, :class:`ShapeError` for a rate that no file holds.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in _CONTAINERS:
        raise VideoError(
            f"{target}: cannot write {suffix or 'a file without suffix'!r}; {did_you_mean(suffix, _CONTAINERS)}"
        )
    slowest, fastest = _FILE_RATES
    if not slowest <= fps <= fastest:
        raise ShapeError(f"{target}: a file holds between {slowest:g} and {fastest:g} frames a second, got {fps}")


def write_video(
    path: str | os.PathLike[str],
    video: Video,
    *,
    crf: int = 18,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``video`` to ``path``, replacing what is there; the container follows the suffix.

    ``crf`` is the quality, 0 (best) to 51; the video's rate lies between 0.001 and 1000 frames a second. Even sizes are
    written as yuv420p, which every player shows. H.264 cannot hold an odd size that way, so odd sizes are written as
    yuv444p, which keeps the exact size but which some browsers do not play. ``metadata`` comes back from
    :func:`probe_video` with its names in lower case. The file appears under its name only when it is complete; its
    folder is made where needed. Raises :class:`VideoError` when writing fails.
    """
    size = (video.height, video.width)
    write_pictures(path, video.frames, size=size, fps=video.fps, crf=crf, metadata=metadata)


def write_pictures(
    path: str | os.PathLike[str],
    pictures: Iterable[Pictures],
    *,
    size: tuple[int, int],
    fps: float,
    crf: int = 18,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """:func:`write_video` of pictures uint8 ``[H,W,3]`` that come one at a time; ``size`` is (H, W)."""
    target = Path(path)
    if not 0 <= crf <= 51:
        raise ShapeError(f"crf must lie between 0 and 51, got {crf}")
    check_destination(target, fps)
    container = _CONTAINERS[target.suffix.lower()]
    try:
        with atomic_path(target) as beside:
            _encode(beside, pictures, *container, size=size, fps=fps, crf=crf, metadata=metadata or {})
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{target}: could not be written ({reason}); check the space and rights there") from error


@dataclass(frozen=True, kw_only=True)
class _Window:
    """The arguments of a reading, checked."""

    start: float
    duration: float | None
    num_frames: int | None
    fps: float | None
    size: tuple[int, int] | None
    crop: Crop

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and self.start >= 0):
            raise ShapeError(f"start must be zero or more seconds, got {self.start}")
        if self.duration is not None and self.num_frames is not None:
            raise ShapeError(f"give duration or num_frames, not both; got {self.duration} and {self.num_frames}")
        if self.duration is not None and not (math.isfinite(self.duration) and self.duration > 0):
            raise ShapeError(f"duration must be a positive number of seconds, got {self.duration}")
        if self.num_frames is not None and self.num_frames < 1:
            raise ShapeError(f"num_frames must be at least 1, got {self.num_frames}")
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise ShapeError(f"fps must be a positive number, got {self.fps}")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ShapeError(f"size must be (H, W) of at least one pixel each, got {self.size}")
        if self.crop not in ("center", "none"):
            raise ShapeError(f"crop must be 'center' or 'none', got {self.crop!r}")

    def rate(self, source: VideoSource) -> float:
        rate = self.fps or source.rate
        if rate is None:
            raise VideoError(f"{source.path}: states no frame rate; give fps to read it at")
        return rate

    def count(self, rate: float) -> int | None:
        if self.duration is not None:
            return max(1, round(self.duration * rate))
        return self.num_frames


def _iterate(path: str | os.PathLike[str], window: _Window) -> Iterator[Pictures]:
    with VideoSource(path) as source:
        rate = window.rate(source)
        yield from _pictures(source, window, rate, window.count(rate))


def _pictures(source: VideoSource, window: _Window, fps: float, count: int | None) -> Iterator[Pictures]:
    """The frames of the window, exactly ``count`` of them, or all to the end for None."""
    early = _early(fps, source.rate)
    fitter: Fitter | None = None
    current = picture = None
    end, made = 0.0, 0
    for timed in source.frames_from(window.start):
        if fitter is None:
            fitter = Fitter(source, timed.frame, size=window.size, crop=window.crop)
        while current is not None and window.start + made / fps < timed.time - early:
            picture = fitter(current.frame) if picture is None else picture
            yield picture
            made += 1
            if made == count:
                return
        current, picture, end = timed, None, max(end, timed.end)
    if fitter is None or current is None:
        raise VideoError(f"{source.path}: holds no picture that can be decoded; the file is cut short or broken")
    if count is None:
        _check_whole(source, end)
    while made != count and window.start + made / fps < end - early:
        picture = fitter(current.frame) if picture is None else picture
        yield picture
        made += 1
    if count is None and made == 0:
        raise VideoError(f"{source.path}: lasts {end:.3g} s, so nothing begins at {window.start:.3g} s; start earlier")
    if count is not None and made < count:
        _check_whole(source, end)
        raise VideoError(
            f"{source.path}: holds {made} frames at {fps:.4g} fps from {window.start:.3g} s on, {count} were asked for;"
            " ask for fewer, or for another fps"
        )


def _early(fps: float, stored_fps: float | None) -> float:
    return _EARLY * min(1.0 / fps, 1.0 / (stored_fps or fps))


def _check_whole(source: VideoSource, end: float) -> None:
    """Raise when the pictures ended well before the container's own statement: the file was cut short."""
    stated = source.stated_end
    if stated is not None and stated - end > max(3.0 / (source.rate or 25.0), 0.25, 0.02 * stated):
        raise VideoError(
            f"{source.path}: is cut short, its pictures end after {end:.2f} of {stated:.2f} s; copy it again"
        )


def _encode(
    path: Path,
    pictures: Iterable[Pictures],
    container: str,
    codec: str,
    *,
    size: tuple[int, int],
    fps: float,
    crf: int,
    metadata: Mapping[str, str],
) -> None:
    # The format is named because the suffix of the file written beside is .tmp.
    options = {"movflags": "use_metadata_tags+faststart"} if container in ("mp4", "mov") else {}
    with av.open(str(path.absolute()), "w", format=container, options=options) as output:
        output.metadata.update({str(key): str(value) for key, value in metadata.items()})
        quality = {"crf": str(crf)} | _CODEC_OPTIONS[codec]
        rate = Fraction(fps).limit_denominator(1_000_000)
        stream: Any = output.add_stream(codec, rate=rate, options=quality)  # typed by PyAV as any kind of stream
        stream.height, stream.width = size
        stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        stream.codec_context.colorspace = _BT601
        stream.codec_context.color_range = 1
        reformatter = VideoReformatter()
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = reformatter.reformat(frame, format=stream.pix_fmt, dst_colorspace=_BT601, interpolation=SCALING)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
