"""What the processes of a run do together: each function in two processes, and in one, where it changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tests.integration.processes import run, succeed, torchrun
from tokvid.across_processes import any_process, found_by_the_first, joined_processes, rank_and_count
from tokvid.errors import TrainingError
from tokvid.processes import is_main_process

PROGRAM = """
import json, sys, torch
from pathlib import Path
from tokvid import across_processes as across

def look():
    with open("looked", "a") as file:
        file.write(str(rank))
    return Path("found") / str(rank)

with across.joined_processes():
    rank, count = across.rank_and_count()
    mine = torch.tensor([1.0 + rank, 2.0])
    figures = {
        "count": count,
        "found": str(across.found_by_the_first(look)),
        "any": [across.any_process(rank == 1, mine.device), across.any_process(False, mine.device)],
        "sum": across.sum_over_processes(mine.clone()).tolist(),
        "mean": across.mean_over_processes(mine).tolist(),
        "means": {name: float(mean) for name, mean in across.means_over_processes({"a": mine[0]}).items()},
        "all": across.of_all_processes(mine).tolist(),
    }
    Path(f"{rank}.json").write_text(json.dumps(figures))
assert across.rank_and_count() == (0, 1)
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has one process alone")
def test_two_processes_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    succeed(run(*torchrun(2), "program.py", cwd=tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert (
        first
        == second
        == {
            "count": 2,
            "found": "found/0",
            "any": [True, False],
            "sum": [3.0, 4.0],
            "mean": [1.5, 2.0],
            "means": {"a": 1.5},
            "all": [1.0, 2.0, 2.0, 2.0],
        }
    )
    assert (tmp_path / "looked").read_text() == "0", "only the first looks"


def test_a_process_by_itself_says_what_it_has() -> None:
    with joined_processes():
        assert rank_and_count() == (0, 1) and found_by_the_first(lambda: "mine") == "mine"
        assert any_process(True, torch.device("cpu")) and not any_process(False, torch.device("cpu"))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has one process alone")
def test_only_errors_of_the_group_become_its_line() -> None:
    with pytest.raises(RuntimeError, match=r"^ours$"), joined_processes(alone=True):
        raise RuntimeError("ours")
    gone = pytest.raises(TrainingError, match=r"another process of this run is gone.*Connection closed by peer")
    with gone, joined_processes(alone=True):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")
    assert not torch.distributed.is_initialized() and "LOCAL_RANK" not in os.environ


def test_a_rank_that_a_job_system_left_behind_makes_nobody_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "1")
    assert is_main_process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_main_process()
