"""``tokvid encode`` killed in the middle and run again gives the codes of a run that was never killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tokvid.codes_file import CodesFile
from tokvid.video import Video, write_video

pytestmark = pytest.mark.slow


def encode(folder: Path, name: str) -> subprocess.Popen[bytes]:
    command = ["encode", "long.mp4", f"{name}.tokvid", "--codec", "preset:small"]
    return subprocess.Popen([sys.executable, "-m", "tokvid", *command], cwd=folder)


def test_a_killed_encoding_goes_on(tmp_path: Path) -> None:
    tile = np.random.default_rng(0).integers(256, size=(40, 48, 64, 3)).astype(np.uint8)
    write_video(tmp_path / "long.mp4", Video(frames=np.tile(tile, (80, 1, 1, 1)), fps=24), crf=40)
    assert encode(tmp_path, "whole").wait() == 0
    process = encode(tmp_path, "killed")
    state = tmp_path / "killed.tokvid.parts" / "state.safetensors"
    while not state.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert state.exists() and not (tmp_path / "killed.tokvid").exists()
    began = (tmp_path / "killed.tokvid.parts" / "body.bin").stat().st_size
    assert began > 0
    assert encode(tmp_path, "killed").wait() == 0
    killed, whole = CodesFile(tmp_path / "killed.tokvid"), CodesFile(tmp_path / "whole.tokvid")
    assert killed.facts.num_frames == whole.facts.num_frames == 3200
    assert np.array_equal(killed.read(), whole.read())
    assert not state.parent.exists()
