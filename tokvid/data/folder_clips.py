"""Clips cut from the videos of a folder: non-overlapping windows, split by video into train and held out.

Long videos are cut into windows of ``num_frames`` at ``fps``, one clip a window, all with the video's caption. Folders
named ``train`` and ``held_out`` are the splits. Without them a video belongs to one split by a hash of its relative
path, so adding videos never moves another one (except where a split would be empty: then the video nearest to it is
moved). A single video is split by time: its end is held out, and a window between is left out where there are three or
more. Which captions count is told in :mod:`tokvid.data.folder_scan`. Nothing here resizes or decodes:
:mod:`tokvid.video` does.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from tokvid.config_checks import at_least, finite, positive
from tokvid.data.clip import Clip, Split
from tokvid.data.clip_source import ClipSource, Skipped, in_order, spread
from tokvid.data.folder_scan import CaptionedVideo, CaptionRule, FolderScan, name_some, scan_folder
from tokvid.errors import ConfigError, DataError, VideoError
from tokvid.video import count_frames, iter_video, probe_video, read_video

_LOG = logging.getLogger(__name__)
_NAMED = 5  # skipped videos that are told with their reasons; the rest is counted
_RUN = 16  # windows decoded in one pass at most, which bounds what a worker holds


@dataclass(frozen=True, kw_only=True)
class FolderDataConfig:
    """Clips of ``num_frames`` at ``fps``, resized and cut to ``size`` (H, W), from the videos under ``path``.

    ``held_out_share`` of the videos is kept for evaluation, where no folders say which. ``clips_per_video`` takes at
    most so many windows of a video, spread evenly over it; None takes all. ``captions`` chooses a rule of
    :mod:`tokvid.data.folder_scan`.
    """

    kind: Literal["folder"] = "folder"
    path: str
    size: tuple[int, int] = (64, 64)
    num_frames: int = 17
    fps: float = 8.0
    held_out_share: float = 0.1
    clips_per_video: int | None = None
    captions: CaptionRule = "auto"

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ConfigError(f"size must be (H, W) of at least one pixel each, got {self.size}")
        at_least(self, 1, "num_frames")
        positive(self, "fps")
        finite(self, "fps")
        if not 0.0 < self.held_out_share < 1.0:
            raise ConfigError(f"held_out_share must lie between 0 and 1, got {self.held_out_share}")
        if self.clips_per_video is not None:
            at_least(self, 1, "clips_per_video")


@dataclass(frozen=True)
class _Window:
    """One clip: window number ``position`` of ``video``, of those that lie ``num_frames`` apart."""

    video: CaptionedVideo
    position: int
    name: str


@dataclass(frozen=True)
class _Strip:
    """The windows of one video, which are made when they are asked for: millions of videos have very many.

    They are number ``positions`` of those that lie ``num_frames`` apart, ``numbered`` where the video has several.
    ``span``: the frames of the video (from the first, to before the second) that may be in windows.
    """

    video: CaptionedVideo
    span: tuple[int, int]
    positions: Sequence[int]
    numbered: bool

    def windows(self) -> Iterator[_Window]:
        return map(self.window, range(len(self.positions)))

    def window(self, number: int) -> _Window:
        position = self.positions[number]
        return _Window(self.video, position, f"{self.video.name}#{position:04d}" if self.numbered else self.video.name)


@dataclass(frozen=True)
class _Folder:
    """A folder that was looked into: its videos, the windows of every usable one, and the videos that gave none."""

    scan: FolderScan
    by_video: list[_Strip]
    skipped: tuple[Skipped, ...]


class FolderClips(ClipSource):
    """The clips of one split of a folder, of all for None; opening it looks into every video once, without decoding
    it.
    """

    def __init__(self, config: FolderDataConfig, split: Split | None, *, folder: _Folder | None = None) -> None:
        folder = _look_into(config) if folder is None else folder
        self.config, self.split = config, split
        self.size, self.num_frames, self.fps = config.size, config.num_frames, config.fps
        self.name = f"{Path(config.path).resolve().name}/{split or 'all'}"
        self.caption_rule = folder.scan.rule
        self.without_caption = tuple(video.name for video in folder.scan.videos if not video.caption)
        self._skipped = folder.skipped
        self._take(_choose_split(folder.by_video, split, config) if split else folder.by_video)

    @classmethod
    def open_splits(cls, config: FolderDataConfig) -> tuple[Self, Self]:
        """Train and held out, looking into every video once for both."""
        folder = _look_into(config)
        return cls(config, "train", folder=folder), cls(config, "held_out", folder=folder)

    def select(self, positions: Sequence[int]) -> Self:
        """The same source with the clips at ``positions`` alone."""
        found = groupby(map(self._find, positions), key=lambda place: place[0])
        taken = [replace(strip, positions=[strip.positions[number] for _, number in run]) for strip, run in found]
        chosen = copy.copy(self)
        chosen._take(taken)
        return chosen

    def reshaped(self, size: tuple[int, int], num_frames: int) -> Self:
        """The same parts of the same videos cut anew, in clips of another shape; no video is looked into again.

        Videos that are too short for it are left out, which is logged.
        """
        cut = copy.copy(self)
        cut.config = replace(self.config, size=size, num_frames=num_frames)
        cut.size, cut.num_frames = size, num_frames
        cut._take([_strip(strip.video, strip.span, cut.config) for strip in self._strips])
        if cut.num_videos < self.num_videos:
            short = self.num_videos - cut.num_videos
            _LOG.warning("%d of %d videos are too short for %d frames", short, self.num_videos, num_frames)
        return cut

    def digest(self, *, words: bool = False) -> str:
        """SHA-256 (64 hex digits) of the clips' shape, and of the names and sizes in bytes of their videos.

        With ``words`` also of the captions and actions.
        """
        digest = hashlib.sha256(repr((self.size, self.num_frames, self.fps)).encode())
        for strip in self._strips:
            video = strip.video
            digest.update(repr((video.name, video.path.stat().st_size, strip.positions)).encode())
            if words:
                digest.update(repr((video.caption, video.actions)).encode())
        return digest.hexdigest()

    def _take(self, strips: Sequence[_Strip]) -> None:
        self._strips = [strip for strip in strips if strip.positions]
        self._ends = list(accumulate(len(strip.positions) for strip in self._strips))
        self.num_videos = len({strip.video.name for strip in self._strips})

    def _find(self, index: int) -> tuple[_Strip, int]:
        """The video of clip ``index``, and which of its windows that is."""
        self._check_index(index)
        place = bisect_right(self._ends, index)
        strip = self._strips[place]
        return strip, index - self._ends[place] + len(strip.positions)

    def _window(self, index: int) -> _Window:
        strip, number = self._find(index)
        return strip.window(number)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return self._skipped

    def clip_name(self, index: int) -> str:
        return self._window(index).name

    def load(self, index: int) -> Clip:
        window = self._window(index)
        video = read_video(
            window.video.path,
            start=window.position * self.num_frames / self.fps,
            num_frames=self.num_frames,
            fps=self.fps,
            size=self.size,
        )
        return self._clip(window, video.frames)

    def load_range(self, first: int, last: int, *, workers: int = 0) -> Iterator[Clip | Skipped]:
        """The clips from ``first`` up to ``last`` in order; neighbouring windows of a video are decoded in one pass."""
        self._check_range(first, last)
        strips = self._strips if last - first == len(self) else self.select(range(first, last))._strips
        runs = list(_runs(window for strip in strips for window in strip.windows()))
        for results in in_order(self._load_run, runs, workers=workers):
            for result in results:
                if isinstance(result, Skipped):
                    _LOG.warning("skipped %s: %s", result.name, result.reason)
                yield result

    def _load_run(self, run: Sequence[_Window]) -> list[Clip | Skipped]:
        pictures = iter_video(
            run[0].video.path,
            start=run[0].position * self.num_frames / self.fps,
            num_frames=len(run) * self.num_frames,
            fps=self.fps,
            size=self.size,
        )
        results: list[Clip | Skipped] = []
        try:
            for window in run:
                frames = np.empty((self.num_frames, *self.size, 3), np.uint8)
                for target in frames:
                    target[:] = next(pictures)
                results.append(self._clip(window, frames))
        except VideoError as error:
            results += [Skipped(window.name, str(error)) for window in run[len(results) :]]
        return results

    def _clip(self, window: _Window, frames: npt.NDArray[np.uint8]) -> Clip:
        first = window.position * self.num_frames
        return Clip(
            frames=frames,
            fps=self.fps,
            caption=window.video.caption,
            name=window.name,
            actions=window.video.actions[first : first + self.num_frames - 1],
        )


def _look_into(config: FolderDataConfig) -> _Folder:
    """Find the videos and their windows; log what was left out or has no caption. An error where nothing is left."""
    scan = scan_folder(Path(config.path), config.captions)
    by_video, skipped = _cut(scan.videos, config)
    if not by_video:
        first = skipped[0]
        raise DataError(
            f"{config.path}: none of its {len(scan.videos)} videos gives a clip of {config.num_frames} frames"
            f" at {config.fps:g} fps; the first: {first.name}: {first.reason}"
        )
    for item in skipped[:_NAMED]:
        _LOG.warning("skipped %s: %s", item.name, item.reason)
    if len(skipped) > _NAMED:
        _LOG.warning("skipped %d of %d videos in all", len(skipped), len(scan.videos))
    mute = [video.name for video in scan.videos if not video.caption]
    if mute:
        _LOG.warning("%d of %d videos have no caption: %s", len(mute), len(scan.videos), name_some(mute))
    return _Folder(scan, by_video, skipped)


def _cut(videos: Sequence[CaptionedVideo], config: FolderDataConfig) -> tuple[list[_Strip], tuple[Skipped, ...]]:
    """The windows of every usable video, and the videos that gave none."""

    def strip_of(video: CaptionedVideo) -> _Strip | Skipped:
        try:
            info = probe_video(video.path)
        except VideoError as error:
            return Skipped(video.name, str(error))
        num_frames = count_frames(info, config.fps)
        _check_actions(video, num_frames, config.fps)
        strip = _strip(video, (0, num_frames), config)
        if not strip.positions:
            length = f"{info.duration_s:.3g} s is shorter than {config.num_frames} frames at {config.fps:g} fps"
            return Skipped(video.name, length)
        return strip

    results = list(in_order(strip_of, videos, workers=os.cpu_count() or 1))
    usable = [result for result in results if not isinstance(result, Skipped)]
    return usable, tuple(result for result in results if isinstance(result, Skipped))


def _check_actions(video: CaptionedVideo, num_frames: int, fps: float) -> None:
    """There must be one action from each frame of the whole video, read at ``fps``, to the next."""
    if video.actions_file is not None and len(video.actions) != num_frames - 1:
        raise DataError(
            f"{video.actions_file}: holds {len(video.actions)} actions, but {video.path.name} has {num_frames} frames"
            f" at {fps:g} fps, so there are {num_frames - 1} from one frame to the next; write as many, or read it at"
            " another fps"
        )


def _strip(video: CaptionedVideo, span: tuple[int, int], config: FolderDataConfig) -> _Strip:
    """The windows of ``video`` that lie in ``span``, or those of them that the configuration takes."""
    every = range(-(-span[0] // config.num_frames), span[1] // config.num_frames)
    most = config.clips_per_video
    positions = every if most is None else [every[number] for number in spread(len(every), most)]
    return _Strip(video, span, positions, numbered=len(every) > 1)


def _choose_split(by_video: Sequence[_Strip], split: Split, config: FolderDataConfig) -> list[_Strip]:
    if by_video[0].video.split is not None:
        return [strip for strip in by_video if strip.video.split == split]
    share = config.held_out_share
    if len(by_video) == 1:
        return [_split_by_time(by_video[0], split, share, config.num_frames)]
    ranked = sorted(by_video, key=lambda strip: _hash_share(strip.video.name))
    held_out = sum(_hash_share(strip.video.name) < share for strip in ranked)
    held_out = min(max(held_out, 1), len(ranked) - 1)
    chosen = ranked[:held_out] if split == "held_out" else ranked[held_out:]
    return sorted(chosen, key=lambda strip: strip.video.name)


def _split_by_time(strip: _Strip, split: Split, share: float, num_frames: int) -> _Strip:
    positions, (begin, end) = strip.positions, strip.span
    held_out = min(max(1, round(share * len(positions))), len(positions) - 1)
    first = len(positions) - held_out  # of the windows that are held out
    if split == "held_out":
        taken = positions[first:]
        return replace(strip, positions=taken, span=(taken[0] * num_frames if taken else end, end))
    taken = positions[: first - 1 if first > 1 else first]
    return replace(strip, positions=taken, span=(begin, (taken[-1] + 1) * num_frames))


def _hash_share(name: str) -> float:
    """A number in [0, 1) that depends on ``name`` alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _runs(windows: Iterable[_Window]) -> Iterator[list[_Window]]:
    """Cut ``windows`` into runs of neighbours in one video."""
    run: list[_Window] = []
    for window in windows:
        follows = run and window.video is run[-1].video and window.position == run[-1].position + 1
        if run and (not follows or len(run) == _RUN):
            yield run
            run = []
        run.append(window)
    if run:
        yield run
