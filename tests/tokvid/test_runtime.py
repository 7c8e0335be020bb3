"""Seeds, threads and devices; and that what is shared names nobody's machine."""

from __future__ import annotations

import json
import platform
import random
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from tokvid import runtime
from tokvid.errors import ConfigError
from tokvid.provenance import command_line, provenance, versions
from tokvid.runtime import bf16_is_fast, computes_in_bf16, default_device, describe, has_bf16, prepare, usable_cores


@pytest.fixture(autouse=True)
def _as_before() -> object:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_seed_reproduces_every_generator() -> None:
    prepare(3)
    first = draws()
    assert draws() != first
    prepare(3)
    assert draws() == first
    prepare(4)
    assert draws() != first


def test_threads_and_determinism_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    prepare(0, threads=1)
    assert torch.get_num_threads() == 1 and torch.are_deterministic_algorithms_enabled()
    prepare(0, deterministic=False)
    assert torch.get_num_threads() == usable_cores() and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("value", "threads"), [("1", 1), ("3", 3), (" 2,1 ", 2)])
def test_the_number_of_threads_that_the_environment_asks_for_is_taken(
    monkeypatch: pytest.MonkeyPatch, value: str, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    prepare(0)
    assert torch.get_num_threads() == threads
    prepare(0, threads=2)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("value", ["0", "-1", "all", "1.5", ",2"])
def test_a_number_of_threads_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(ConfigError, match=f"OMP_NUM_THREADS is '{value}'"):
        prepare(0)


def test_an_empty_number_of_threads_is_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    prepare(0)
    assert torch.get_num_threads() == usable_cores()


def test_a_precision_that_is_named_is_taken_and_auto_asks_the_machine() -> None:
    assert computes_in_bf16("bf16") and not computes_in_bf16("fp32")
    assert computes_in_bf16("auto") == bf16_is_fast()


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seed": 2**32}, {"seed": 0, "threads": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        prepare(**wrong)


def test_the_machine_is_described_without_naming_it() -> None:
    facts = describe()
    assert facts["bf16_is_fast"] == bf16_is_fast("cpu") and facts["default_device"] == str(default_device())
    assert len(facts["cuda_devices"]) == torch.cuda.device_count()
    text = json.dumps([facts, provenance(seed=1)])
    assert platform.node() not in text


def test_provenance_holds_versions_seed_and_command() -> None:
    found = provenance(seed=7, command=["/opt/somebody/bin/tokvid", "train", "mine.yaml", "--seed=7"])
    assert found["seed"] == 7 and found["command"] == "tokvid train mine.yaml --seed=7"
    assert versions()["torch"] == torch.__version__.split("+")[0] or versions()["torch"] == torch.__version__
    assert json.loads(json.dumps(found)) == found


def test_absolute_paths_are_shortened() -> None:
    arguments = [
        "/a/b/tokvid/__main__.py",
        "encode",
        "/tmp/me/clip.mp4",
        "--out=/tmp/me/x",
        "~/y.mp4",
        "C:\\me\\z.mp4",
        "runs/a",
    ]
    assert command_line(arguments) == "tokvid encode …/clip.mp4 --out=…/x …/y.mp4 …/z.mp4 runs/a"
    assert command_line([]) == ""
    said = ["tokvid", "generate", "a fox's cub moves", "", "-o", "für.mp4"]
    assert shlex.split(command_line(said)) == said


def test_what_an_optimizer_computes_in_is_not_a_matter_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured, it differed between a run and its resumption on a busy machine, and could between processes."""
    answer = has_bf16("cpu")
    for gain in (0.01, 100.0):
        monkeypatch.setattr(runtime, "_processor_bf16_gain", lambda gain=gain: gain)
        assert has_bf16("cpu") == answer
    flags = Path("/proc/cpuinfo")
    if platform.machine() == "x86_64" and flags.exists():
        assert answer == any(flag in flags.read_text() for flag in ("avx512_bf16", "amx_tile"))
