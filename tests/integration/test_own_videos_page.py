"""The page about a user's own videos: its program cuts a film into the folder that the page speaks of."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.integration.processes import ROOT, run, succeed
from tokvid.cli.clips import load_splits
from tokvid.data.clips import FolderDataConfig
from tokvid.video import Video, write_video

PAGE = (ROOT / "docs" / "your-own-videos.md").read_text(encoding="utf-8")


def film(path: Path) -> None:
    """12.5 seconds at 24 frames a second: a window that moves over coarse noise, another picture from 9 seconds on."""
    frames = []
    for seed, count in ((0, 216), (1, 84)):
        picture = np.random.default_rng(seed).integers(0, 255, (6, 40, 3))
        field = np.kron(picture, np.ones((8, 8, 1))).astype(np.uint8)
        frames += [field[:, t : t + 64] for t in range(count)]
    write_video(path, Video(frames=np.stack(frames), fps=24))


def test_the_program_cuts_a_film_into_pieces_that_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film(tmp_path / "film.mp4")
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    succeed(run(sys.executable, "-c", program, cwd=tmp_path))
    clips, held_out = load_splits(FolderDataConfig(path=str(tmp_path / "my_videos"), size=(32, 32)))
    assert len(clips) == 6 and len(held_out) == 2
    assert set(held_out.captions) == {"a purple bird sits on a branch"} and len(set(clips.captions)) == 2
    assert not clips.skipped and not held_out.skipped
    said = capsys.readouterr().err
    assert "to train on: 6 clips of 6 videos; held out: 2 clips of 2 videos" in said
    # The scene that is held out shows nothing of the others.
    assert "look almost like" not in said


def test_the_page_shows_what_is_really_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film(tmp_path / "film.mp4")
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    succeed(run(sys.executable, "-c", program, cwd=tmp_path))
    # Everything in one folder, so that names decide: overlapping pieces come to lie on both sides.
    for path in (tmp_path / "my_videos" / "train").iterdir():
        path.rename(tmp_path / "my_videos" / path.name)
    load_splits(FolderDataConfig(path=str(tmp_path / "my_videos"), size=(32, 32), held_out_share=0.4))
    page = without_numbers(PAGE)
    lines = [without_numbers(line) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) == 2 and all(line in page for line in lines), lines


def without_numbers(text: str) -> str:
    return re.sub(r"\d+", "N", " ".join(text.split()))
