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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np

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
class _Folder:
    """A folder that was looked into: its videos, the windows of every usable one, and the videos that gave none."""

    scan: FolderScan
    by_video: list[list[_Window]]
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
        every = [window for windows in folder.by_video for window in windows]
        self._windows = _choose_split(folder.by_video, split, config.held_out_share) if split else every
        self.num_videos = len({window.video.name for window in self._windows})

    @classmethod
    def open_splits(cls, config: FolderDataConfig) -> tuple[Self, Self]:
        """Train and held out, looking into every video once for both."""
        folder = _look_into(config)
        return cls(config, "train", folder=folder), cls(config, "held_out", folder=folder)

    def select(self, positions: Sequence[int]) -> Self:
        """The same source with the clips at ``positions`` alone."""
        chosen = copy.copy(self)
        chosen._windows = [self._windows[position] for position in positions]
        chosen.num_videos = len({window.video.name for window in chosen._windows})
        return chosen

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return self._skipped

    def load(self, index: int) -> Clip:
        self._check_index(index)
        window = self._windows[index]
        video = read_video(
            window.video.path,
            start=window.position * self.num_frames / self.fps,
            num_frames=self.num_frames,
            fps=self.fps,
            size=self.size,
        )
        return Clip(frames=video.frames, fps=self.fps, caption=window.video.caption, name=window.name)

    def load_all(self, *, workers: int = 0) -> Iterator[Clip | Skipped]:
        """Every clip in order; neighbouring windows of a video are decoded in one pass."""
        for results in in_order(self._load_run, list(_runs(self._windows)), workers=workers):
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
                results.append(Clip(frames=frames, fps=self.fps, caption=window.video.caption, name=window.name))
        except VideoError as error:
            results += [Skipped(window.name, str(error)) for window in run[len(results) :]]
        return results


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


def _cut(videos: Sequence[CaptionedVideo], config: FolderDataConfig) -> tuple[list[list[_Window]], tuple[Skipped, ...]]:
    """The windows of every usable video, and the videos that gave none."""

    def windows_of(video: CaptionedVideo) -> list[_Window] | Skipped:
        try:
            info = probe_video(video.path)
        except VideoError as error:
            return Skipped(video.name, str(error))
        total = count_frames(info, config.fps) // config.num_frames
        if total == 0:
            length = f"{info.duration_s:.3g} s is shorter than {config.num_frames} frames at {config.fps:g} fps"
            return Skipped(video.name, length)
        positions = spread(total, config.clips_per_video or total)
        names = [f"{video.name}#{position:04d}" if total > 1 else video.name for position in positions]
        return [_Window(video, position, name) for position, name in zip(positions, names, strict=True)]

    results = list(in_order(windows_of, videos, workers=os.cpu_count() or 1))
    usable = [result for result in results if not isinstance(result, Skipped)]
    return usable, tuple(result for result in results if isinstance(result, Skipped))


def _choose_split(by_video: Sequence[list[_Window]], split: Split, share: float) -> list[_Window]:
    if by_video[0][0].video.split is not None:
        return [window for windows in by_video for window in windows if window.video.split == split]
    if len(by_video) == 1:
        return _split_by_time(by_video[0], split, share)
    ranked = sorted(by_video, key=lambda windows: _hash_share(windows[0].video.name))
    held_out = sum(_hash_share(windows[0].video.name) < share for windows in ranked)
    held_out = min(max(held_out, 1), len(ranked) - 1)
    chosen = ranked[:held_out] if split == "held_out" else ranked[held_out:]
    return sorted((w for windows in chosen for w in windows), key=lambda w: (w.video.name, w.position))


def _split_by_time(windows: list[_Window], split: Split, share: float) -> list[_Window]:
    if len(windows) == 1:
        return windows if split == "train" else []
    held_out = min(max(1, round(share * len(windows))), len(windows) - 1)
    if split == "held_out":
        return windows[-held_out:]
    gap = 1 if len(windows) - held_out > 1 else 0
    return windows[: len(windows) - held_out - gap]


def _hash_share(name: str) -> float:
    """A number in [0, 1) that depends on ``name`` alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _runs(windows: Sequence[_Window]) -> Iterator[list[_Window]]:
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
