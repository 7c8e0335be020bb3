"""Folders of videos cut into clips of other shapes: the same split of the same videos, not looked into again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.tokvid.test_clips import T, config, first_levels, names, video
from tokvid.data.clips import FolderClips, SpriteDataConfig, materialise, open_clips, open_splits


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("videos", [1, 6])
def test_clips_of_another_length_stay_within_their_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, videos: int, num_frames: int
) -> None:
    for number in range(videos):
        video(tmp_path / f"{number}.mp4", num_frames=11 * T + 1)
    both = open_splits(config(tmp_path))
    frames: list[set[tuple[str, int]]] = []
    monkeypatch.setattr("tokvid.data.folder_clips.probe_video", None)  # no video is looked into again
    for source in both:
        cut = source.reshaped((8, 12), num_frames)
        assert isinstance(source, FolderClips) and isinstance(cut, FolderClips)
        loaded = materialise(cut)
        assert loaded.frames.shape == (len(cut), num_frames, 8, 12, 3)
        assert [cut.clip_name(index) for index in range(len(cut))] == loaded.names
        firsts = zip(loaded.names, first_levels(loaded.frames), strict=True)
        frames.append({(n.partition("#")[0], first + k) for n, first in firsts for k in range(num_frames)})
    assert frames[0] and not frames[0] & frames[1]
    if videos == 1:  # the frames before the window that is left out between the splits
        assert max(frame for _, frame in frames[0]) < 9 * T
        assert {frame for _, frame in frames[1]} <= set(range(10 * T, 11 * T + 1))


def test_videos_too_short_for_longer_clips_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(8):
        video(tmp_path / f"{number}.mp4", num_frames=T + number)
    train = open_clips(config(tmp_path, clips_per_video=2), "train")
    assert isinstance(train, FolderClips)
    with caplog.at_level(logging.WARNING):
        longer = train.reshaped((16, 16), T + 4)
    loaded = materialise(longer)
    assert loaded.names == [name for name in names(tmp_path, "train", num_frames=T + 4) if name in set(loaded.names)]
    assert all(int(name[0]) >= 4 for name in loaded.names)
    short = train.num_videos - len(loaded)
    assert short > 0 and f"{short} of {train.num_videos} videos are too short for 8 frames" in caplog.text
    assert len(train.reshaped((16, 16), 1)) == 2 * train.num_videos


def test_the_digest_of_a_source_follows_its_files_and_its_shape(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        video(tmp_path / name)
    train = open_clips(config(tmp_path), "train")
    assert isinstance(train, FolderClips)
    digests = [train.digest(), train.reshaped((16, 16), 2).digest(), train.reshaped((8, 8), T).digest()]
    assert open_clips(config(tmp_path), "train").digest() == digests[0] == train.reshaped((16, 16), T).digest()
    digests.append(open_clips(config(tmp_path), "held_out").digest())
    with (tmp_path / train.load(0).name).open("ab") as file:
        file.write(b"more")
    digests.append(train.digest())
    sprites = [
        open_clips(SpriteDataConfig(train_clips=n, seed=s), "train").digest() for n, s in ((3, 0), (4, 0), (3, 1))
    ]
    assert len({*digests, *sprites}) == 8


def test_a_selection_keeps_the_order_it_was_asked_for(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        video(tmp_path / name, num_frames=3 * T)
    train = open_clips(config(tmp_path), "train")
    assert isinstance(train, FolderClips) and len(train) == 6
    chosen = train.select([4, 0, 1, 5])
    assert materialise(chosen).names == [train.clip_name(index) for index in (4, 0, 1, 5)]
    assert chosen.num_videos == 2
