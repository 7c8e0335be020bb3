"""What is dear is made once: a finished fast demo, and a folder of a user's own videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.processes import succeed, tokvid
from tokvid.data.sprites.export import write_folder
from tokvid.data.sprites.world import SpriteWorld, SpriteWorldConfig


@dataclass(frozen=True)
class FinishedDemo:
    """The folder that ``tokvid demo --fast`` filled, and what it printed. To be read only."""

    folder: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def fast_demo(tmp_path_factory: pytest.TempPathFactory) -> FinishedDemo:
    """One fast demo, for every test of the session."""
    place = tmp_path_factory.mktemp("fast-demo")
    done = tokvid("demo", "--fast", "--output", "runs/demo", cwd=place, threads=None)
    return FinishedDemo(folder=place / "runs" / "demo", stdout=succeed(done), stderr=done.stderr)


@pytest.fixture(scope="session")
def own_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short mp4 files with captions in text files; to be read only."""
    folder = tmp_path_factory.mktemp("own") / "my_videos"
    write_folder(SpriteWorld(SpriteWorldConfig(size=(32, 48))), folder, "train", 6)
    return folder
