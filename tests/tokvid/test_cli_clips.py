"""What a verb says while it loads clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokvid.cli.clips import load_splits
from tokvid.data.clips import FolderDataConfig
from tokvid.data.sprites import SpriteWorld, SpriteWorldConfig
from tokvid.data.sprites.export import write_folder


def test_skipped_videos_are_named_on_stderr_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "videos"
    write_folder(SpriteWorld(SpriteWorldConfig()), folder, "train", 4)
    (folder / "broken.mp4").write_bytes(b"no video")
    config = FolderDataConfig(path=str(folder), size=(32, 32), num_frames=17, fps=8.0)
    clips, held_out = load_splits(config)
    assert len(clips) + len(held_out) == 4
    said = capsys.readouterr()
    assert "broken.mp4" in said.err and "skipped" in said.err
    assert said.out == "", "the result of 'tokvid train' is JSON on stdout and nothing else"
