"""What a verb says while it loads clips."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from tokvid.cli.clips import load_splits
from tokvid.data.clips import FolderDataConfig
from tokvid.data.sprites import SpriteWorld, SpriteWorldConfig
from tokvid.data.sprites.export import write_folder
from tokvid.errors import DataError
from tokvid.video import Video, read_video, write_video


def config(folder: Path) -> FolderDataConfig:
    return FolderDataConfig(path=str(folder), size=(32, 32), num_frames=17, fps=8.0)


def sprites(folder: Path, clips: int) -> Path:
    write_folder(SpriteWorld(SpriteWorldConfig()), folder, "train", clips)
    return folder


def test_skipped_videos_are_named_off_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = sprites(tmp_path / "videos", 4)
    (folder / "broken.mp4").write_bytes(b"no video")
    with caplog.at_level(logging.WARNING):
        clips, held_out = load_splits(config(folder))
    assert len(clips) + len(held_out) == 4
    assert caplog.text.count("skipped broken.mp4: ") == 1, "once, not once a split"
    said = capsys.readouterr()
    assert said.out == "", "the result of 'tokvid train' is JSON on stdout and nothing else"


def test_what_was_found_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips, held_out = load_splits(config(sprites(tmp_path / "videos", 6)))
    said = capsys.readouterr().err
    assert f"to train on: {len(clips)} clips of {len(clips)} videos; held out: {len(held_out)} clip" in said
    assert "17 frames of 32x32 at 8 fps; captions: from text files" in said
    assert "look almost like" not in said


def test_one_clip_cannot_be_held_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"videos: no clip is left to hold out .*add videos"):
        load_splits(config(sprites(tmp_path / "videos", 1)))


def test_overlapping_pieces_on_both_sides_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A walk of 60 frames over a large noisy picture, cut into pieces that overlap by half.
    random = np.random.default_rng(0)
    field = np.kron(random.integers(0, 255, (10, 30, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    film = np.stack([field[16:48, 2 * t : 2 * t + 32] for t in range(60)])
    for folder, pieces in (("train", (0, 17)), ("held_out", (8, 43))):
        for start in pieces:
            write_video(tmp_path / folder / f"{start}.mp4", Video(frames=film[start : start + 17], fps=8))
    assert len(read_video(tmp_path / "train" / "0.mp4").frames) == 17
    load_splits(config(tmp_path))
    assert "1 of 2 held-out clips look almost like clips to train on" in capsys.readouterr().err
