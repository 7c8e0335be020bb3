"""A disk that is full is one line, whoever of the writers meets it: a real one, where this process may mount it."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests.tokvid.tiny_recipes import DATA, MODEL, TRAINING
from tokvid.cli import main as command

FULL = "error: the disk is full"
Mount = Callable[[int], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Mount]:
    """``disk(kibibytes)`` mounts a disk of that size."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(kibibytes: int) -> Path:
        if not sys.platform.startswith("linux") or shutil.which("mount") is None:
            pytest.skip("a small disk is mounted as on Linux, with its mount")
        size = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(place)]
        if subprocess.run(size, capture_output=True).returncode:
            pytest.skip("this process may mount nothing")
        return place

    yield mount
    gc.collect()  # models whose weights are still mapped from it
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: torch.save(torch.zeros(1 << 16), folder / "weights.pt"),
        lambda folder: save_file({"a": torch.zeros(1 << 16)}, folder / "weights.safetensors"),
        lambda folder: (folder / "text").write_text("x" * (1 << 17)),
    ],
    ids=["torch", "safetensors", "text"],
)
def test_every_writer_is_understood(
    write: Callable[[Path], object], disk: Mount, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = disk(32)
    module = types.ModuleType("tokvid.cli.trial")
    module.add_arguments = lambda parser: None  # type: ignore[attr-defined]
    module.run = lambda arguments: write(folder) and 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tokvid.cli.trial", module)
    monkeypatch.setitem(command.VERBS, "trial", command.Verb("tokvid.cli.trial", "a trial"))
    assert command.main(["trial"]) == 2
    assert capsys.readouterr().err.startswith(FULL)


def command_line(folder: Path, output: Path) -> list[str]:
    """``tokvid train`` of a small recipe that saves each step."""
    recipe = {
        "task": "lm",
        "output": str(output),
        "codec": "preset:tiny",
        "data": DATA,
        "model": MODEL,
        "training": {**TRAINING, "checkpoint_every": 1},
        "evaluation": {"clips": 2},
    }
    (folder / "lm.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return ["train", str(folder / "lm.yaml")]


def test_a_training_says_so_and_keeps_nothing_half(
    disk: Mount, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = disk(300) / "lm"
    assert command.main(command_line(tmp_path, output)) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines()[-1].startswith(FULL)
    assert {path.name for path in output.iterdir()} == {"log.jsonl", "recipe.json", "tensorboard"}


def test_a_disk_that_fills_up_in_the_middle_loses_nothing(
    disk: Mount, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(command_line(tmp_path, tmp_path / "whole")) == 0
    size = sum(path.stat().st_size for path in next((tmp_path / "whole").glob("step-*")).iterdir()) // 1024
    output = disk(size * 3 // 2 + 100) / "lm"  # room for the first checkpoint, and for half of the second beside it
    assert command.main(command_line(tmp_path, output)) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(FULL)
    assert [path.name for path in output.glob("step-*")] == ["step-000001"]

    larger = ["mount", "-o", f"remount,size={20 * size}k", str(output.parent)]
    subprocess.run(larger, check=True)
    assert command.main([*command_line(tmp_path, output), "--resume"]) == 0
    weights = [run / "lm" / "model.safetensors" for run in (tmp_path / "whole", output)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
