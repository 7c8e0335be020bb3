"""Two runs never write into one folder, and nobody has to clean up after one that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tokvid.errors import CheckpointError
from tokvid.run_lock import LOCK_FILE, check_output, only_run

pytest.importorskip("fcntl")

HOLD = """
import sys, time
from tokvid.run_lock import only_run
with only_run(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    """A process that tries to hold the folder."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=pipe, stderr=pipe, text=True)


def test_the_second_run_is_told_who_is_in_the_folder(tmp_path: Path) -> None:
    with only_run(tmp_path / "run"):
        with only_run(tmp_path / "other"), only_run(tmp_path / "run", wanted=False):
            pass
        assert (tmp_path / "run" / LOCK_FILE).exists()
        _, said = start(tmp_path / "run").communicate()
        assert f"another run (process {os.getpid()} on " in said and "give this one another output folder" in said
        assert (tmp_path / "run" / LOCK_FILE).exists()
    assert list((tmp_path / "run").iterdir()) == []
    with only_run(tmp_path / "run"):
        pass


def test_who_is_in_the_folder_is_said_before_what_lies_in_it(tmp_path: Path) -> None:
    """Not the advice to remove it."""
    check_output(tmp_path / "new", resume=False)
    (tmp_path / "step-000001").mkdir()
    process = start(tmp_path)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        for resume in (False, True):
            with pytest.raises(CheckpointError, match=f"another run .process {process.pid} on"):
                check_output(tmp_path, resume=resume)
    finally:
        process.kill()
        process.communicate()
    check_output(tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="step-000001 is of an earlier run"):
        check_output(tmp_path, resume=False)
    assert (tmp_path / LOCK_FILE).exists(), "nobody's lock is taken away by looking"


def test_a_killed_run_leaves_the_folder_free(tmp_path: Path) -> None:
    process = start(tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(CheckpointError, match=f"process {process.pid} on"), only_run(tmp_path):
        raise AssertionError("entered beside another process")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / LOCK_FILE).exists()
    with only_run(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text(encoding="utf-8").startswith(f"process {os.getpid()} ")
