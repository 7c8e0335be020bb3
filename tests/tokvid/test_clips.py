"""Folders of real videos: whose captions, which windows, which split, and what is said about the rest."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tokvid.config import from_mapping, to_mapping
from tokvid.data.clip_source import in_order
from tokvid.data.clips import (
    DataConfig,
    FolderClips,
    FolderDataConfig,
    SpriteDataConfig,
    materialise,
    open_clips,
    open_splits,
)
from tokvid.data.folder_scan import scan_folder
from tokvid.errors import ConfigError, DataError, VideoError
from tokvid.video import Video, write_video

FPS = 8.0
T = 4


def shades(first: int, num_frames: int) -> npt.NDArray[np.uint8]:
    """Grey frames whose level tells which frame of the video each is: 5 levels a frame."""
    levels = (20 + 5 * (np.arange(first, first + num_frames) % 45)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, 16, 16, 3)).copy()


def video(path: Path, num_frames: int = T, first: int = 0, fps: float = FPS) -> Path:
    write_video(path, Video(frames=shades(first, num_frames), fps=fps))
    return path


def config(folder: Path, **changes: Any) -> FolderDataConfig:
    return FolderDataConfig(path=str(folder), **{"size": (16, 16), "num_frames": T, "fps": FPS} | changes)


def first_levels(frames: npt.NDArray[np.uint8]) -> list[int]:
    """For clips ``[N,T,H,W,3]``: which frame of its video each clip begins with."""
    return [round((float(clip[0].mean()) - 20) / 5) for clip in frames]


def names(folder: Path, split: Any, **changes: Any) -> list[str]:
    return materialise(open_clips(config(folder, **changes), split)).names


# --- captions -------------------------------------------------------------------------------------------------------


def test_text_files_beside_the_videos(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("a red\napple \n", encoding="utf-8")
    video(tmp_path / "deep" / "er" / "b.webm")
    (tmp_path / "deep" / "er" / "b.txt").write_text("\ufeffein Ei", encoding="utf-8")
    (tmp_path / "README.txt").write_text("about")
    (tmp_path / ".hidden.txt").write_text("no")
    scan = scan_folder(tmp_path)
    assert scan.rule == "text"
    assert [(v.name, v.caption) for v in scan.videos] == [("a.mp4", "a red apple"), ("deep/er/b.webm", "ein Ei")]


def test_metadata_jsonl_with_caption_or_text(tmp_path: Path) -> None:
    video(tmp_path / "v" / "a.mp4")
    video(tmp_path / "b.MP4".lower())
    video(tmp_path / "unlisted.mp4")
    lines = [{"file_name": "v/a.mp4", "caption": "one"}, {"file_name": "b.mp4", "text": "two", "other": 1}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    scan = scan_folder(tmp_path)
    assert scan.rule == "metadata"
    assert {v.name: v.caption for v in scan.videos} == {"v/a.mp4": "one", "b.mp4": "two", "unlisted.mp4": ""}


def test_class_folders(tmp_path: Path) -> None:
    for name in ("walking/a.mp4", "walking/b.mp4", "hand_stand/c.mp4"):
        video(tmp_path / name)
    scan = scan_folder(tmp_path)
    assert scan.rule == "folders"
    assert [v.caption for v in scan.videos] == ["hand_stand", "walking", "walking"]


def test_one_folder_of_videos_is_no_class(tmp_path: Path) -> None:
    video(tmp_path / "videos" / "a.mp4")
    assert scan_folder(tmp_path).rule == "none"
    assert scan_folder(tmp_path, "folders").videos[0].caption == "videos"


def test_a_rule_can_be_chosen(tmp_path: Path) -> None:
    for name in ("x/a.mp4", "y/b.mp4"):
        video(tmp_path / name)
    (tmp_path / "classes.txt").write_text("x y")
    with pytest.raises(DataError, match=r"1 captions have no video beside them: classes\.txt"):
        scan_folder(tmp_path)
    assert [v.caption for v in scan_folder(tmp_path, "folders").videos] == ["x", "y"]
    assert [v.caption for v in scan_folder(tmp_path, "none").videos] == ["", ""]
    with pytest.raises(DataError, match=r"holds no metadata\.jsonl"):
        scan_folder(tmp_path, "metadata")


def test_captions_without_a_video_are_named(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4")
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    with pytest.raises(DataError, match=r"2 captions have no video beside them: b\.txt, c\.txt"):
        open_clips(config(tmp_path), "train")


def test_a_listed_file_that_is_missing_is_named(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": ""}\n{"file_name": "z.mp4", "text": ""}')
    with pytest.raises(DataError, match=r"missing files: z\.mp4 \(line 2\)"):
        scan_folder(tmp_path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 1: is not JSON"),
        ("[1]", "expected"),
        ('{"caption": "x"}', "expected"),
        ('{"file_name": "a.mp4", "prompt": "x"}', "neither 'caption' nor 'text', only file_name, prompt"),
        ('{"file_name": "a.mp4", "text": 3}', "must be a string, got 3"),
        ('{"file_name": "../a.mp4", "text": ""}', "lies outside"),
        ('{"file_name": "/a.mp4", "text": ""}', "lies outside"),
        (
            '{"file_name": "a.mp4", "text": ""}\n{"file_name": "./a.mp4", "text": ""}',
            "line 2: names 'a.mp4' a second time",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    video(tmp_path / "a.mp4")
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(DataError, match=says):
        scan_folder(tmp_path)


def test_two_sources_of_captions_are_refused(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "y"}')
    with pytest.raises(DataError, match=r"both metadata\.jsonl and caption files \(a\.txt\)"):
        scan_folder(tmp_path)
    assert scan_folder(tmp_path, "text").videos[0].caption == "x"
    assert scan_folder(tmp_path, "metadata").videos[0].caption == "y"


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 noir")
    with pytest.raises(DataError, match=r"a\.txt: is not UTF-8 text \(byte 3\)"):
        scan_folder(tmp_path)


def test_a_folder_without_videos(tmp_path: Path) -> None:
    for content in ((), ("notes.md",), ("._a.mp4",)):
        for name in content:
            (tmp_path / name).touch()
        with pytest.raises(DataError, match="holds no video"):
            open_clips(config(tmp_path), "train")
    with pytest.raises(DataError, match="no such folder"):
        open_clips(config(tmp_path / "nowhere"), "train")
    with pytest.raises(DataError, match="is no folder"):
        open_clips(config(tmp_path / "notes.md"), "train")


# --- windows and splits ---------------------------------------------------------------------------------------------


def test_a_long_video_is_cut_into_windows_that_do_not_overlap(tmp_path: Path) -> None:
    video(tmp_path / "long.mp4", num_frames=4 * T + 3)
    video(tmp_path / "other.mp4", num_frames=4 * T + 3)
    clips = open_clips(config(tmp_path), "train")
    loaded = materialise(clips)
    assert loaded.frames.shape == (4, T, 16, 16, 3) and loaded.frames.dtype == np.uint8
    assert first_levels(loaded.frames) == [0, T, 2 * T, 3 * T]
    stem = loaded.names[0].partition("#")[0]
    assert loaded.names == [f"{stem}#{n:04d}" for n in range(4)]
    for index in range(4):  # one at a time, by seeking, the same frames
        assert np.array_equal(clips.load(index).frames, loaded.frames[index])
        assert clips.load(index).name == loaded.names[index]
    with pytest.raises(IndexError):
        clips.load(4)


def test_frames_are_taken_at_the_wanted_rate(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4", num_frames=24, fps=24.0)
    loaded = materialise(open_clips(config(tmp_path), "train"))
    assert loaded.fps == FPS and len(loaded) == 1  # one of the two windows of four is held out
    assert [round((f.mean() - 20) / 5) for f in loaded.frames[0].astype(float)] == [0, 3, 6, 9]


def test_clips_per_video_are_spread_over_it(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        video(tmp_path / name, num_frames=9 * T)
    loaded = materialise(open_clips(config(tmp_path, clips_per_video=3), "train"))
    assert first_levels(loaded.frames) == [0, 3 * T, 6 * T]
    assert [name.partition("#")[2] for name in loaded.names] == ["0000", "0003", "0006"]


def test_workers_change_nothing(tmp_path: Path) -> None:
    for name in "abcd":
        video(tmp_path / f"{name}.mp4", num_frames=3 * T, first=ord(name))
    (tmp_path / "broken.mp4").write_bytes(b"x" * 100)
    alone, shared = (materialise(open_clips(config(tmp_path), "train"), workers=n) for n in (0, 3))
    assert np.array_equal(alone.frames, shared.frames)
    assert (alone.names, alone.captions, alone.skipped) == (shared.names, shared.captions, shared.skipped)


def test_the_split_is_by_video_and_stays_when_videos_are_added(tmp_path: Path) -> None:
    for number in range(30):
        video(tmp_path / f"{number}.mp4", num_frames=2 * T)
    before = {split: set(names(tmp_path, split, held_out_share=0.3)) for split in ("train", "held_out")}
    assert not before["train"] & before["held_out"] and len(before["train"] | before["held_out"]) == 60
    videos = {split: {n.partition("#")[0] for n in members} for split, members in before.items()}
    assert not videos["train"] & videos["held_out"]
    assert 3 <= len(videos["held_out"]) <= 16
    for number in range(30, 36):
        video(tmp_path / f"{number}.mp4", num_frames=2 * T)
    for split, members in before.items():
        assert members <= set(names(tmp_path, split, held_out_share=0.3))


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_no_split_is_empty_where_there_are_two_videos(tmp_path: Path, share: float) -> None:
    for name in ("a.mp4", "b.mp4"):
        video(tmp_path / name)
    assert [len(names(tmp_path, split, held_out_share=share)) for split in ("train", "held_out")] == [1, 1]


@pytest.mark.parametrize(
    ("windows", "share", "train", "held_out"),
    [
        (1, 0.1, 1, 0),
        (2, 0.1, 1, 1),
        (3, 0.1, 1, 1),
        (10, 0.1, 8, 1),
        (10, 0.3, 6, 3),
        (4, 0.999, 1, 3),
        (40, 0.1, 35, 4),
    ],
)
def test_a_single_video_is_split_by_time_with_a_gap(
    tmp_path: Path, windows: int, share: float, train: int, held_out: int
) -> None:
    video(tmp_path / "only.mp4", num_frames=windows * T)
    loaded = [materialise(open_clips(config(tmp_path, held_out_share=share), s)) for s in ("train", "held_out")]  # type: ignore[arg-type]
    assert [len(array) for array in loaded] == [train, held_out]
    assert first_levels(loaded[0].frames) == [n * T % 45 for n in range(train)]
    assert first_levels(loaded[1].frames) == [n * T % 45 for n in range(windows - held_out, windows)]
    if windows >= 3 and share < 0.9:
        assert train + held_out < windows


# --- folders that are splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["held_out", "validation", "val", "test"])
def test_folders_named_after_the_splits_are_the_splits(tmp_path: Path, other: str) -> None:
    for name in ("train/a.mp4", "train/more/b.mp4", f"{other}/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        video(tmp_path / name, num_frames=2 * T)
        (tmp_path / name).with_suffix(".txt").write_text(f"caption of {name}")
    train, held_out = (materialise(source) for source in open_splits(config(tmp_path)))
    assert {name.partition("#")[0] for name in train.names} == {"train/a.mp4", "train/more/b.mp4"}
    assert [name.partition("#")[0] for name in held_out.names] == [f"{other}/c.mp4"] * 2
    assert held_out.captions == [f"caption of {other}/c.mp4"] * 2


def test_the_name_of_a_split_is_no_caption_but_class_folders_in_it_are(tmp_path: Path) -> None:
    for name in ("train/a.mp4", "held_out/b.mp4"):
        (tmp_path / "bare" / name).parent.mkdir(parents=True)
        video(tmp_path / "bare" / name)
    assert scan_folder(tmp_path / "bare").rule == "none"
    for name in ("train/dogs/a.mp4", "train/cats/b.mp4", "held_out/dogs/c.mp4"):
        (tmp_path / "classes" / name).parent.mkdir(parents=True)
        video(tmp_path / "classes" / name)
    scan = scan_folder(tmp_path / "classes")
    assert [(v.caption, v.split) for v in scan.videos] == [("dogs", "held_out"), ("cats", "train"), ("dogs", "train")]


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    for name in ("train/a.mp4", "bus/b.mp4", "test/c.mp4"):
        (tmp_path / name).parent.mkdir()
        video(tmp_path / name)
    scan = scan_folder(tmp_path)
    assert [(v.caption, v.split) for v in scan.videos] == [("bus", None), ("test", None), ("train", None)]


def test_both_splits_at_once_are_those_opened_one_by_one_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(12):
        video(tmp_path / f"{number}.mp4", num_frames=2 * T)
    for number in range(8):
        (tmp_path / f"broken{number}.mp4").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        both = open_splits(config(tmp_path))
    assert [record.message.startswith("skipped broken") for record in caplog.records].count(True) == 5
    assert "skipped 8 of 20 videos in all" in caplog.text
    for source, split in zip(both, ("train", "held_out"), strict=True):
        alone = open_clips(config(tmp_path), split)  # type: ignore[arg-type]
        loaded, expected = materialise(source), materialise(alone)
        assert loaded.names == expected.names and np.array_equal(loaded.frames, expected.frames)
        assert isinstance(source, FolderClips) and source.num_videos * 2 == len(source)
    sprites = SpriteDataConfig(train_clips=3, held_out_clips=2)
    assert [len(source) for source in open_splits(sprites)] == [3, 2]


# --- what is left out is said ---------------------------------------------------------------------------------------


def test_what_does_not_decode_is_skipped_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        video(tmp_path / f"good{number}.mp4")
        (tmp_path / f"good{number}.txt").write_text("good" if number else "  ")
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 50)
    video(tmp_path / "short.mp4", num_frames=T - 1)
    with caplog.at_level(logging.WARNING):
        clips = open_clips(config(tmp_path), "train")
    assert isinstance(clips, FolderClips)
    assert [skipped.name for skipped in clips.skipped] == ["broken.mp4", "short.mp4"]
    assert "shorter than 4 frames at 8 fps" in clips.skipped[1].reason
    assert clips.without_caption == ("broken.mp4", "good0.mp4", "short.mp4")
    for said in ("broken.mp4", "short.mp4", "3 of 6 videos", "good0.mp4"):
        assert said in caplog.text
    loaded = materialise(clips)
    assert [name for name, _ in loaded.skipped] == ["broken.mp4", "short.mp4"]
    assert all(name.startswith("good") for name in loaded.names) and len(loaded) == len(clips) == 3


def test_a_video_that_breaks_after_it_was_opened_is_left_out_not_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(5):
        video(tmp_path / f"{number}.mp4")
    clips = open_clips(config(tmp_path), "train")
    victim = clips.load(1).name
    (tmp_path / victim).write_bytes(b"gone")
    with pytest.raises(VideoError, match=victim):
        clips.load(1)
    calls: list[tuple[int, int]] = []
    loaded = materialise(clips, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, len(clips)) for n in range(1, len(clips) + 1)]
    assert [name for name, _ in loaded.skipped] == [victim] and victim in caplog.text
    assert victim not in loaded.names and len(loaded) == len(clips) - 1 == loaded.frames.shape[0]


def test_a_folder_of_broken_videos_is_an_error_that_names_one(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.mp4").write_bytes(b"x")
    with pytest.raises(DataError, match=r"none of its 3 videos gives a clip.*0\.mp4"):
        open_clips(config(tmp_path), "train")


# --- configuration and the sprite world -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SomeRecipe:
    data: DataConfig


def test_the_kind_chooses_the_configuration() -> None:
    recipe = {"data": {"kind": "folder", "path": "videos", "size": [32, 48]}}
    assert from_mapping(SomeRecipe, recipe).data == FolderDataConfig(path="videos", size=(32, 48))
    assert from_mapping(SomeRecipe, {"data": {"kind": "sprites"}}).data == SpriteDataConfig()
    with pytest.raises(ConfigError, match=r"'data\.kind' is 'folders': did you mean 'folder'"):
        from_mapping(SomeRecipe, {"data": {"kind": "folders", "path": "videos"}})
    for made in (SpriteDataConfig(train_clips=3, seed=5), FolderDataConfig(path="videos", clips_per_video=2)):
        assert from_mapping(type(made), to_mapping(made)) == made
    with pytest.raises(ConfigError, match="did you mean 'num_frames'"):
        from_mapping(SpriteDataConfig, {"kind": "sprites", "num_frame": 3})


@pytest.mark.parametrize(
    "changes",
    [
        {"size": (0, 8)},
        {"num_frames": 0},
        {"fps": 0.0},
        {"fps": float("nan")},
        {"held_out_share": 0.0},
        {"held_out_share": 1.0},
        {"clips_per_video": 0},
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        FolderDataConfig(path="x", **changes)


def test_impossible_sprite_settings_are_refused() -> None:
    for changes in ({"train_clips": 0}, {"held_out_clips": 0}, {"size": (4, 4)}, {"two_sprite_share": 1.5}):
        with pytest.raises(ConfigError):
            SpriteDataConfig(**changes)  # type: ignore[arg-type]


def test_sprite_clips_in_one_array_are_the_clips_one_by_one() -> None:
    sprites = SpriteDataConfig(train_clips=37, held_out_clips=3, num_frames=5, seed=1)
    clips = open_clips(sprites, "train")
    loaded = materialise(clips, workers=2)
    assert loaded.frames.shape == (37, 5, 32, 32, 3) and len(loaded) == len(clips) == 37
    for index in (0, 31, 32, 36):
        clip = clips.load(index)
        assert np.array_equal(clip.frames, loaded.frames[index])
        assert (clip.caption, clip.name, clip.fps) == (loaded.captions[index], loaded.names[index], loaded.fps)
    held_out = materialise(open_clips(sprites, "held_out"))
    assert len(held_out) == 3 and not set(held_out.names) & set(loaded.names)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'train'"):
        open_clips(SpriteDataConfig(), "trian")  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_in_order_keeps_the_order_and_passes_errors_on(workers: int) -> None:
    assert list(in_order(lambda n: n * n, range(50), workers=workers)) == [n * n for n in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda n: 1 // n, [1, 0, 1], workers=workers))
