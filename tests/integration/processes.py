"""The command in processes of its own, as a user runs it; shared by tests that start some."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (ROOT, ROOT / "tokenizers", ROOT / "lm")
TIMEOUT_S = 1200


def environment(*, threads: int | None = 1) -> dict[str, str]:
    """This process's, with our packages to be found from any folder, no network of the Hub, and so many threads.

    One thread is more robust than speed where many short processes start beside other work; None leaves the choice.
    """
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SOURCES)), "HF_HUB_OFFLINE": "1"}
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(threads)
    return variables


def run(*command: object, cwd: Path, threads: int | None = 1) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever its exit code."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=environment(threads=threads),
        timeout=TIMEOUT_S,
    )


def torchrun(processes: int) -> list[str]:
    """What stands before a program (or -m module) so that so many processes run it."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def tokvid(*arguments: object, cwd: Path, threads: int | None = 1) -> subprocess.CompletedProcess[str]:
    """Run ``tokvid`` with these arguments."""
    return run(sys.executable, "-m", "tokvid", *arguments, cwd=cwd, threads=threads)


def succeed(done: subprocess.CompletedProcess[str]) -> str:
    """The stdout of a command, which must have ended well."""
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done.stdout
