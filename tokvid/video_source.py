"""One open video file: its stream, its clock, its pictures in order from any time, upright and in RGB.

The inner half of :mod:`tokvid.video`. It knows PyAV; it does not know windows, frame rates asked for, or models.
All times are seconds from the first picture of the stream, whatever timestamp the container gives that one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from tokvid.errors import VideoError

# swscale flags: bicubic (widened when shrinking, so antialiased), accurate rounding, full chroma. Without the
# last two every colour comes back more than one level too dark.
SCALING = 0x4 | 0x40000 | 0x2000
# Containers whose header states how long the video is; others are guessed at by FFmpeg and must be measured.
_STATES_DURATION = ("mov", "matroska", "avi")
# FFmpeg draws plain text as video and follows playlists to other files; neither is a video file.
_NOT_VIDEO = {"tty", "bin", "xbin", "idf", "adf", "hls", "concat", "dash", "sdp"}
# Seconds before the wanted time to seek to, one after the other until a picture at or before it is met. MPEG streams
# have no index, and their first pictures after a jump may carry the times of others.
_SEEK_BACK = (0.0, 2.0, 10.0)
_SEEK_BACK_MPEG = (3.0, 10.0)
_MATRIX_ONE = 65536.0  # display matrices are 16.16 fixed point

Crop = Literal["center", "none"]


@contextmanager
def media_errors(path: Path) -> Iterator[None]:
    """Turn what PyAV raises while reading ``path`` into one :class:`VideoError` that names it."""
    try:
        yield
    except av.error.FFmpegError as error:
        reason = error.strerror or str(error)
        raise VideoError(
            f"{path}: cannot be read as a video ({reason}); the file is broken, cut short or of another kind"
        ) from error


def existing_file(path: str | os.PathLike[str]) -> Path:
    """Return ``path``, or raise :class:`VideoError` when it is missing, a folder or empty."""
    file = Path(path)
    if file.is_dir():
        raise VideoError(f"{file}: is a folder, not a video file; name a file in it")
    if not file.exists():
        raise VideoError(f"{file}: no such file; check the path")
    if file.is_file() and file.stat().st_size == 0:
        raise VideoError(f"{file}: is empty (0 bytes); copy or download it again")
    return file


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """How a stored picture becomes an upright one: transpose first, then the flips."""

    transpose: bool = False
    flip_columns: bool = False
    flip_rows: bool = False
    rotation: int = 0

    def apply(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Turn one ``[H,W,3]`` picture."""
        if self.transpose:
            picture = picture.swapaxes(0, 1)
        if self.flip_columns:
            picture = picture[:, ::-1]
        return picture[::-1] if self.flip_rows else picture


@dataclass(frozen=True)
class TimedFrame:
    """A decoded picture and the seconds from ``time`` to ``end`` during which it is on screen."""

    time: float
    end: float
    frame: Any  # av.VideoFrame


class VideoSource:
    """An open file; enter it with ``with``. Every failure is a :class:`VideoError` that names the file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = existing_file(path)
        self._origin: float | None = None  # of the first picture; AVI and MPEG streams misstate it
        with media_errors(self.path):
            self._open()

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        # FFmpeg decodes ahead in threads of its own. PyAV frees the decoder with Python's lock held, and waits for
        # them; one that has something to log waits for the lock, when anybody (torchvision does) has switched PyAV's
        # logging on. Flushing waits for the threads without the lock.
        self.stream.codec_context.flush_buffers()
        self._container.close()

    def _open(self) -> None:
        # The absolute name, because FFmpeg reads "name:rest" as a protocol.
        self._container = av.open(str(self.path.absolute()), "r", metadata_errors="ignore")
        try:
            self._choose_stream()
        except BaseException:
            self._container.close()
            raise

    def _choose_stream(self) -> None:
        container = self._container
        if _NOT_VIDEO & set(container.format.name.split(",")):
            raise VideoError(f"{self.path}: holds text or a playlist, not a video; name the video file itself")
        # A cover picture in a song is a video stream to FFmpeg.
        streams = [s for s in container.streams.video if not _is_cover(s)]
        if not streams:
            found: list[str] = sorted({s.type for s in container.streams}) or ["nothing"]
            raise VideoError(f"{self.path}: has no video in it, only {', '.join(found)}; choose a file with pictures")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError(f"{self.path}: its video codec is unknown to PyAV {av.__version__}; convert the file")
        stream.thread_type = "AUTO"
        self.stream = stream
        rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
        if stream.start_time is None:  # a raw stream: its mean rate is FFmpeg's default, the other is in the stream
            rates = (stream.guessed_rate, stream.base_rate, stream.average_rate)
        rate = next((rate for rate in rates if rate), None)
        self.rate = float(rate) if rate else None
        self._time_base = float(stream.time_base) if stream.time_base else None
        self._stated_start = 0.0
        if stream.start_time is not None and self._time_base is not None:
            self._stated_start = stream.start_time * self._time_base

    @property
    def metadata(self) -> dict[str, str]:
        """The container's metadata; Matroska stores names in capitals, so all names are in lower case."""
        return {key.lower(): value for key, value in self._container.metadata.items()}

    @property
    def stated_end(self) -> float | None:
        """Seconds of video the container states it holds, or None where it states nothing to rely on."""
        names = self._container.format.name.split(",")
        if not set(names) & set(_STATES_DURATION):
            return None
        if self.stream.duration and self._time_base is not None:
            return float(self.stream.duration * self._time_base)
        tag = _clock_seconds(self.stream.metadata.get("DURATION", ""))
        if tag is not None:
            return max(0.0, tag - self._stated_start)
        if self._container.duration and len(self._container.streams) == 1:
            return float(self._container.duration / av.time_base) - self._stated_start
        return None

    def measured_end(self) -> float:
        """Seconds of video, counted over all packets without decoding them."""
        end, packets, timed = 0.0, 0, 0
        step = 1.0 / self.rate if self.rate else 0.0
        with media_errors(self.path):
            self._rewind()
            for packet in self._container.demux(self.stream):
                if packet.size == 0:
                    continue
                packets += 1
                if packet.pts is not None and self._time_base is not None:
                    timed += 1
                    length = (packet.duration or 0) * self._time_base or step
                    end = max(end, packet.pts * self._time_base - self._stated_start + length)
            self._rewind()
        return end if timed == packets else packets * step

    def frames_from(self, start: float) -> Iterator[TimedFrame]:
        """The pictures in order, beginning at or before ``start`` seconds; long files are entered by seeking."""
        with media_errors(self.path):
            if start > 0:
                if self._origin is None:
                    next(self._decode(), None)
                frames = self._seek(start)
                if frames is not None:
                    yield from frames
                    return
                self._rewind()
            yield from self._decode()

    def _seek(self, start: float) -> Iterator[TimedFrame] | None:
        is_mpeg = self._container.format.name in ("mpeg", "mpegts")
        for back in _SEEK_BACK_MPEG if is_mpeg else _SEEK_BACK:
            target = start - back
            if target <= 0 or self._time_base is None or self._origin is None:
                return None
            try:
                self._container.seek(math.floor((self._origin + target) / self._time_base), stream=self.stream)
                frames = self._decode(require_times=True)
                first = next(frames, None)
            except av.error.FFmpegError:
                return None  # a container that cannot seek; it is read from the beginning instead
            if first is not None and first.time <= start and not first.frame.is_corrupt:
                return _chain(first, frames)
        return None

    def _rewind(self) -> None:
        self._close()
        self._open()

    def _decode(self, *, require_times: bool = False) -> Iterator[TimedFrame]:
        step = 1.0 / self.rate if self.rate else 0.0
        expected = 0.0
        for frame in self._container.decode(self.stream):
            if frame.time is None:
                if require_times:
                    return
                time = expected  # raw streams carry no times: the pictures follow each other at the nominal rate
            else:
                self._origin = frame.time if self._origin is None else self._origin
                time = frame.time - self._origin
            expected = time + ((frame.duration or 0) * (self._time_base or 0.0) or step)
            yield TimedFrame(time, expected, frame)

    def orientation(self, frame: Any) -> Orientation:
        """Read the display matrix attached to a decoded ``frame``."""
        try:
            side_data = frame.side_data.get("DISPLAYMATRIX")
        except ValueError as error:  # PyAV has no name for kinds that FFmpeg added later
            raise VideoError(
                f"{self.path}: carries side data unknown to PyAV {av.__version__} ({error}); re-encode it"
            ) from error
        if side_data is None:
            return Orientation()
        matrix = np.frombuffer(bytes(side_data), np.int32)[:5].astype(np.float64) / _MATRIX_ONE
        across_x, across_y, _, down_x, down_y = matrix
        transpose = abs(across_y) > abs(across_x)
        kept = (down_x, across_y) if transpose else (across_x, down_y)
        lost = (across_x, down_y) if transpose else (across_y, down_x)
        if max(map(abs, lost)) > 0.02 * min(map(abs, kept)) or min(map(abs, kept)) == 0:
            raise VideoError(f"{self.path}: is rotated by an angle that is no multiple of 90 degrees; re-encode it")
        rotation = round(math.degrees(math.atan2(across_y, across_x)) / 90) * 90 % 360
        return Orientation(transpose=transpose, flip_columns=kept[0] < 0, flip_rows=kept[1] < 0, rotation=rotation)


class Fitter:
    """Turns decoded pictures into upright RGB arrays of one size.

    ``size`` is (H, W) or None for the stored size; with ``crop="center"`` the picture keeps its aspect (of the
    display, where pixels are not square), covers the size and is cut at its centre; with ``"none"`` it is stretched.
    """

    def __init__(self, source: VideoSource, first: Any, *, size: tuple[int, int] | None, crop: Crop) -> None:
        self._source, self._size, self._crop = source, size, crop
        self._reformatter = VideoReformatter()
        self._orientation = source.orientation(first)
        self._stored = (first.height, first.width)

    def __call__(self, frame: Any) -> npt.NDArray[np.uint8]:
        """A contiguous uint8 ``[H,W,3]`` copy of ``frame``; :class:`VideoError` for one that FFmpeg has patched up."""
        if frame.is_corrupt:
            raise VideoError(
                f"{self._source.path}: the picture at {frame.time or 0:.2f} s is damaged: copy the file again, or cut"
                " it out"
            )
        if self._size is None:
            if (frame.height, frame.width) != self._stored:
                raise VideoError(
                    f"{self._source.path}: changes its size from {self._stored[0]}x{self._stored[1]} to"
                    f" {frame.height}x{frame.width} in the middle; give a size to read it at"
                )
            return np.ascontiguousarray(self._orientation.apply(self._rgb(frame, frame.height, frame.width)))
        turned = self._orientation.transpose
        height, width = self._size[::-1] if turned else self._size
        if self._crop == "none":
            return np.ascontiguousarray(self._orientation.apply(self._rgb(frame, height, width)))
        cover_height, cover_width = _cover(frame, _pixel_aspect(self._source.stream), height, width)
        picture = self._rgb(frame, cover_height, cover_width)
        top, left = (cover_height - height) // 2, (cover_width - width) // 2
        return np.ascontiguousarray(self._orientation.apply(picture[top : top + height, left : left + width]))

    def _rgb(self, frame: Any, height: int, width: int) -> npt.NDArray[np.uint8]:
        with media_errors(self._source.path):
            scaled = self._reformatter.reformat(frame, width, height, "rgb24", interpolation=SCALING)
            return scaled.to_ndarray().astype(np.uint8, copy=False)


def _cover(frame: Any, pixel_aspect: float, height: int, width: int) -> tuple[int, int]:
    """The smallest (H, W) of the frame's display aspect that covers ``height`` by ``width``."""
    aspect = frame.width * pixel_aspect / frame.height
    if aspect * height >= width:
        return height, max(width, round(aspect * height))
    return max(height, round(width / aspect)), width


def _pixel_aspect(stream: Any) -> float:
    aspect = stream.sample_aspect_ratio
    return float(aspect) if aspect else 1.0


def _is_cover(stream: Any) -> bool:
    return bool(int(stream.disposition) & 0x400)  # AV_DISPOSITION_ATTACHED_PIC


def _clock_seconds(text: str) -> float | None:
    """Seconds of Matroska's ``HH:MM:SS.nnn``."""
    parts = text.strip("\0 ").split(":")
    try:
        hours, minutes, seconds = (float(p) for p in parts)
    except ValueError:
        return None
    return hours * 3600 + minutes * 60 + seconds


def _chain(first: TimedFrame, rest: Iterator[TimedFrame]) -> Iterator[TimedFrame]:
    yield first
    yield from rest
