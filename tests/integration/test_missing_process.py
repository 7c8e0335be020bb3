"""Of the processes of a run one does not come, or is gone before the end: the others say so in a line, and nothing is
lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time as clock
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.integration.processes import TIMEOUT_S, environment
from tests.lm import tiny_run as tiny_lm
from tests.tokenizers import tiny_run as tiny_codec
from tokvid.across_processes import MEETING
from tokvid.checkpoint import newest_valid
from tokvid.config import to_mapping
from tokvid.training_log import read_log

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has one process alone"),
]
RECIPES = {"codec": tiny_codec.recipe, "lm": tiny_lm.recipe}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(recipe: Any, rank: int, port: int, *, processes: int = 2, **variables: str) -> subprocess.Popen[str]:
    """One process of a run, as a scheduler starts it: nobody looks after the others."""
    path = Path(f"{recipe.output}.yaml")
    path.write_text(yaml.safe_dump(to_mapping(recipe)), encoding="utf-8")
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return subprocess.Popen(
        [sys.executable, "-m", "tokvid", "train", str(path), "--resume"],
        cwd=path.parent,
        env=environment() | {name: str(value) for name, value in place.items()} | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def error_of(process: subprocess.Popen[str]) -> str:
    """The last line that it says, which it ends with as for all that a user can mend."""
    _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 2 and "Traceback" not in said, said
    return said.splitlines()[-1]


@pytest.mark.parametrize("task", RECIPES)
@pytest.mark.parametrize(
    ("rank", "problem"),
    [(0, "of 3 processes of the run 1, 2 did not come to "), (2, "the first process of the run did not answer at ")],
)
def test_a_process_that_does_not_come_is_named(task: str, rank: int, problem: str, tmp_path: Path) -> None:
    alone = start(RECIPES[task](tmp_path / "run"), rank, free_port(), processes=3, **{MEETING: "3"})
    assert problem in error_of(alone)


@pytest.mark.parametrize("time", ["soon", "0"])
def test_a_time_that_is_none_is_refused(time: str, tmp_path: Path) -> None:
    alone = start(tiny_codec.recipe(tmp_path / "run"), 0, free_port(), **{MEETING: time})
    assert f"the environment's {MEETING} must be a whole number from 1, got {time!r}" in error_of(alone)


@pytest.mark.parametrize("task", RECIPES)
@pytest.mark.parametrize("gone", [0, 1])
def test_of_a_process_that_is_gone_the_others_tell(task: str, gone: int, tmp_path: Path) -> None:
    recipe = RECIPES[task](tmp_path / "run", steps=100_000, checkpoint_every=3, validate_every=100_000)
    port = free_port()
    processes = [start(recipe, rank, port) for rank in (0, 1)]
    log = tmp_path / "run" / "log.jsonl"
    while all(process.poll() is None for process in processes) and not any(line["step"] >= 4 for line in read_log(log)):
        clock.sleep(0.02)
    os.kill(processes[gone].pid, signal.SIGKILL)
    assert "another process of this run is gone" in error_of(processes[1 - gone])
    processes[gone].communicate()
    assert newest_valid(tmp_path / "run").path is not None
