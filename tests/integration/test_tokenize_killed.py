"""``tokvid tokenize`` killed in the middle and run again gives the shards of a run that was never killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.processes import environment, succeed, tokvid
from tests.tokenizers.lively import lively_preset
from tokvid.data.code_shards import verify

pytestmark = pytest.mark.slow
CLIPS = 96


def command(name: str, workers: int) -> list[str]:
    options = ["--size", "32x32", "--clips", str(CLIPS), "--shard-clips", "8", "--workers", str(workers)]
    return ["tokenize", "sprites", name, "--codec", "codec", *options]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a codec, and ``whole``: what one process wrote that nobody disturbed."""
    folder = tmp_path_factory.mktemp("tokenize")
    lively_preset("small").save_pretrained(folder / "codec")
    succeed(tokvid(*command("whole", 1), cwd=folder))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "data").glob("*.parquet"))}


def begin(place: Path, name: str, workers: int, shards: int) -> subprocess.Popen[str]:
    """A run in a group of processes of its own, which has written so many shards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tokvid", *command(name, workers)],
        cwd=place,
        env=environment(),
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(contents(place / name)) < shards and process.poll() is None:
        time.sleep(0.005)
    return process


def all_ended(group: int, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on(place: Path, workers: int) -> None:
    name = f"killed-{workers}"
    data = place / name / "data"
    process = begin(place, name, workers, 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert all_ended(process.pid), "what the killed process had started went on without it"
    begun, whole = contents(place / name), contents(place / "whole")
    assert 2 <= len(begun) < len(whole) and not (place / name / "code_shards.json").exists()
    times = {path.name: path.stat().st_mtime_ns for path in data.glob("*.parquet")}
    succeed(tokvid(*command(name, 1), cwd=place))
    assert contents(place / name) == whole
    again = [file for file, time_ns in times.items() if (data / file).stat().st_mtime_ns != time_ns]
    assert len(again) <= workers, "a process that was killed had one shard in hand"
    assert not list((place / name).rglob("*.tmp")) and not (place / name / "unfinished").exists()
    assert verify(place / name)[0].clips == {"train": CLIPS, "held_out": CLIPS}


def test_ctrl_c_ends_all_processes_and_the_run_goes_on(place: Path) -> None:
    process = begin(place, "stopped", 2, 1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate()
    assert process.returncode == 130 and "Traceback" not in said and "interrupted" in said
    assert all_ended(process.pid)
    succeed(tokvid(*command("stopped", 1), cwd=place))
    assert contents(place / "stopped") == contents(place / "whole")
