from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tokvid import read_video
from tokvid.data.sprites import Oracle, SpriteWorld, SpriteWorldConfig, as_dataset, write_folder
from tokvid.errors import DataError

WORLD = SpriteWorld(SpriteWorldConfig(num_frames=9))


def test_the_dataset_holds_the_clips(tmp_path: Path) -> None:
    dataset = as_dataset(WORLD, "train", 4, cache_dir=tmp_path)
    assert dataset.column_names == ["name", "caption", "fps", "frames"] and len(dataset) == 4
    for index, row in enumerate(dataset.with_format("numpy")):
        clip = WORLD.clip(index, split="train")
        assert (row["name"], row["caption"], row["fps"]) == (clip.name, clip.caption, clip.fps)
        assert np.array_equal(row["frames"], clip.frames)
    other = as_dataset(SpriteWorld(SpriteWorldConfig(num_frames=9, seed=1)), "train", 4, cache_dir=tmp_path)
    assert other["caption"][:] != dataset["caption"][:]  # another world is not served from the same cache


def test_the_folder_holds_videos_and_captions(tmp_path: Path) -> None:
    paths = write_folder(WORLD, tmp_path / "clips", "held_out", 3)
    assert [path.name for path in paths] == [f"held_out-{index:06d}.mp4" for index in range(3)]
    assert len(list((tmp_path / "clips").iterdir())) == 6
    videos = [read_video(path) for path in paths]
    for index, (path, video) in enumerate(zip(paths, videos, strict=True)):
        assert path.with_suffix(".txt").read_text(encoding="utf-8").strip() == WORLD.caption(index, split="held_out")
        assert video.frames.shape == (9, 32, 32, 3) and video.fps == 8.0
    sights = Oracle(WORLD.config).look(np.stack([video.frames for video in videos]))
    for index, sight in enumerate(sights):
        expected = {p.sprite for p in WORLD.scene(index, split="held_out").sprites}
        assert {seen.sprite for seen in sight.sprites} == expected
    with pytest.raises(DataError, match="is not empty"):
        write_folder(WORLD, tmp_path / "clips", "held_out", 3)


def test_no_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 1, got 0"):
        as_dataset(WORLD, "train", 0, cache_dir=tmp_path)
    with pytest.raises(DataError, match="at least 1, got 0"):
        write_folder(WORLD, tmp_path / "empty", "train", 0)
