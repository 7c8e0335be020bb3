"""Loading the clips of a recipe for a verb: with a bar, and with what they are told on stderr."""

from __future__ import annotations

import sys

from tokvid.cli.progress import counted
from tokvid.data.clips import ClipArray, ClipSource, DataConfig, FolderClips, materialise, open_splits
from tokvid.data.near_copies import near_copies
from tokvid.errors import DataError
from tokvid.processes import is_main_process

_CAPTIONS = {
    "metadata": "from metadata.jsonl",
    "text": "from text files",
    "folders": "the names of the folders",
    "none": "none",
}


def load_splits(config: DataConfig, *, workers: int = 0) -> tuple[ClipArray, ClipArray]:
    """Training and held-out clips in memory, loaded on ``workers`` threads. stdout is left to the verb's own result.

    What is skipped is logged by the source. :class:`DataError` where nothing can be held out.
    """
    sources = open_splits(config)
    tell(*sources)
    clips, held_out = _load(sources[0], "train", workers), _load(sources[1], "held_out", workers)
    if isinstance(sources[0], FolderClips):
        warn_of_copies(clips, held_out)
    return clips, held_out


def load_held_out(config: DataConfig, *, workers: int = 0) -> tuple[ClipSource, ClipArray]:
    """:func:`load_splits` with the training clips left where they are; so nobody looks for near copies among them."""
    sources = open_splits(config)
    tell(*sources)
    return sources[0], _load(sources[1], "held_out", workers)


def tell(train: ClipSource, held_out: ClipSource) -> None:
    """Say, in the first process, how many clips a folder gave for what; :class:`DataError` where one has none."""
    if not isinstance(train, FolderClips) or not isinstance(held_out, FolderClips):
        return
    shape = f"{train.num_frames} frames of {train.size[1]}x{train.size[0]} at {train.fps:g} fps"
    for source, purpose in ((train, "to train on"), (held_out, "to hold out")):
        if not len(source):
            raise DataError(
                f"{train.config.path}: no clip is left {purpose} (a clip has {shape}): there must be one to train on"
                " and one to hold out; add videos"
            )
    if not is_main_process():
        return
    print(
        f"to train on: {_counts(train)}; held out: {_counts(held_out)}; a clip: {shape};"
        f" captions: {_CAPTIONS[train.caption_rule]}",
        file=sys.stderr,
    )


def warn_of_copies(train: ClipArray, held_out: ClipArray) -> None:
    """Say on stderr when held-out clips show almost the same pictures as training clips."""
    copies = int(near_copies(train.frames, held_out.frames).sum())
    if copies and is_main_process():
        print(
            f"{copies} of {len(held_out)} held-out clips look almost like clips to train on (pieces of one film?): the"
            " held-out figures are better than new videos would give; put the videos into folders named train and"
            " held_out to say what is held out",
            file=sys.stderr,
        )


def _counts(source: FolderClips) -> str:
    clips, videos = len(source), source.num_videos
    return f"{clips} clip{'s' * (clips != 1)} of {videos} video{'s' * (videos != 1)}"


def _load(source: ClipSource, split: str, workers: int) -> ClipArray:
    known = len(source.skipped)
    with counted(f"{split} clips") as progress:
        clips = materialise(source, progress=progress, workers=workers)
    unread = len(clips.skipped) - known
    if unread and is_main_process():
        print(f"{split}: {unread} of {unread + len(clips)} clips could not be read and are left out", file=sys.stderr)
    return clips
