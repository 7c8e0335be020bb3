"""Checkpoints come back exactly, and a torn one is seen."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from tokvid.atomic import atomic_folder, atomic_path
from tokvid.checkpoint import (
    check_unused,
    checkpoints,
    digest_of_folder,
    keep_last,
    load_state,
    newest_valid,
    random_state,
    restore_random_state,
    save_state,
    seal,
    step_folder,
    verify,
    write_state,
)
from tokvid.errors import CheckpointError
from tokvid.state_tree import PackedState, pack, unpack

ROOT = Path(__file__).resolve().parents[2]

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.text() | st.integers()
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.lists(inner).map(tuple),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal in value, type and, for tensors and arrays, every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(k, m) and same(a[k], b[m]) for k, m in zip(a, b, strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@given(trees)
def test_a_packed_tree_comes_back(tree: Any) -> None:
    packed = pack(tree)
    assert same(unpack(PackedState(packed.tensors, json.loads(json.dumps(packed.tree)))), tree)


def test_keys_that_look_alike_stay_apart() -> None:
    tree = {1: torch.ones(1), "1": torch.zeros(2), "__kind__": {"__kind__": "tensor"}}
    assert same(unpack(pack(tree)), tree)


def test_what_cannot_be_held_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"'state\.a\.1' is a set"):
        pack({"a": [0, {1, 2}]})
    with pytest.raises(CheckpointError, match="key"):
        pack({(1, 2): 0})
    packed = pack({"a": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'state\.a'"):
        unpack(PackedState({}, packed.tree))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 3)).square().mean() + random.random() + float(np.random.rand())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.AdamW, {"betas": (0.8, 0.99), "amsgrad": True}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.Adafactor, {}),
    ],
)
def test_training_goes_on_exactly(kind: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2, dtype=torch.float32))
        groups = [{"params": model[0].parameters(), "weight_decay": 0.1}, {"params": model[1].parameters()}]
        return model, kind(groups, **settings)

    torch.manual_seed(0)
    model, optimizer = build()
    train(model, optimizer, 3)
    before = optimizer.state_dict()
    save_state(tmp_path / "step-000003", model.state_dict(), {"optimizer": before, "random": random_state()})
    expected = train(model, optimizer, 3)

    model, optimizer = build()
    saved = load_state(tmp_path / "step-000003")
    model.load_state_dict(saved.tensors)
    optimizer.load_state_dict(saved.state["optimizer"])
    restore_random_state(saved.state["random"])
    assert train(model, optimizer, 3) == expected


def test_an_optimizer_state_comes_back_with_its_types(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.8, 0.9))
    train(model, optimizer, 2)
    save_state(tmp_path / "s", {}, {"optimizer": optimizer.state_dict()})
    state = load_state(tmp_path / "s").state["optimizer"]
    assert same(state, optimizer.state_dict())
    assert state["state"][0]["step"].dtype == torch.float32 and state["param_groups"][0]["betas"] == (0.8, 0.9)


def test_tensors_of_every_kind_come_back(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "tied": base,
        "also_tied": base,
        "slice": base[1:],
        "transposed": base.T,
        "bf16": base.bfloat16(),
        "bool": base > 3,
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    save_state(tmp_path / "s", tensors, {})
    loaded = load_state(tmp_path / "s").tensors
    assert set(loaded) == set(tensors)
    assert all(same(loaded[name], tensor.detach()) for name, tensor in tensors.items())


def make_steps(folder: Path, steps: list[int]) -> None:
    for step in steps:
        save_state(step_folder(folder, step), {"w": torch.full((50,), float(step))}, {"step": step})


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.safetensors", "state.json", "digest.json"])
@pytest.mark.parametrize("wound", ["cut", "flip", "remove"])
def test_a_torn_checkpoint_is_named_and_passed_over(name: str, wound: str, tmp_path: Path) -> None:
    make_steps(tmp_path, [10, 20])
    path = tmp_path / "step-000020" / name
    content = path.read_bytes()
    if wound == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-3] if wound == "cut" else content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    with pytest.raises(CheckpointError, match="step-000020 is torn"):
        load_state(tmp_path / "step-000020")
    found = newest_valid(tmp_path)
    assert (found.path, found.step, found.torn) == (tmp_path / "step-000010", 10, [tmp_path / "step-000020"])
    assert load_state(found.path).state == {"step": 10}
    if wound != "flip":  # retention looks at sizes only
        assert keep_last(tmp_path, 1) == [] and found.path.is_dir()


def test_the_newest_is_by_number_and_other_folders_do_not_count(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "nothing").path is None
    make_steps(tmp_path, [999_999, 1_000_000])
    (tmp_path / "step-000005.tmp").mkdir()
    (tmp_path / "step-best").mkdir()
    assert newest_valid(tmp_path).step == 1_000_000


def test_only_the_last_are_kept(tmp_path: Path) -> None:
    make_steps(tmp_path, [1, 2, 3, 4])
    (tmp_path / "step-000004" / "state.json").unlink()
    removed = keep_last(tmp_path, 2)
    assert removed == [tmp_path / "step-000001"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000003", "step-000004"]
    with pytest.raises(CheckpointError, match="at least one"):
        keep_last(tmp_path, 0)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_who_may_read_is_what_the_user_says(mask: int, tmp_path: Path) -> None:
    """Not the user alone, as safetensors would have it."""
    before = os.umask(mask)
    try:
        save_state(tmp_path / "step-000001", {"w": torch.zeros(3)}, {})
        with atomic_path(tmp_path / "file.safetensors") as beside:
            save_file({"w": torch.zeros(3)}, beside)
    finally:
        os.umask(before)
    for path in (*(tmp_path / "step-000001").iterdir(), tmp_path / "file.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask, path.name


def test_a_checkpoint_that_was_being_replaced_is_found(tmp_path: Path) -> None:
    make_steps(tmp_path, [1, 2])
    step_folder(tmp_path, 2).rename(tmp_path / "step-000002.old.tmp")  # a crash between two renames
    assert newest_valid(tmp_path).step == 2
    shutil.copytree(step_folder(tmp_path, 2), tmp_path / "step-000002.old.tmp")
    (step_folder(tmp_path, 2) / "new").touch()
    assert newest_valid(tmp_path).step == 2 and (step_folder(tmp_path, 2) / "new").exists()


def test_a_checkpoint_may_hold_more_files(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "step-000001") as folder:
        (folder / "codec").mkdir()
        (folder / "codec" / "config.json").write_text("{}", encoding="utf-8")
        write_state(folder, {"w": torch.ones(1)}, {"step": 1})
        seal(folder)
    verify(tmp_path / "step-000001")
    (tmp_path / "step-000001" / "codec" / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"codec/config\.json"):
        verify(tmp_path / "step-000001")


def test_a_digest_follows_names_and_contents(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text, encoding="utf-8")
    first = digest_of_folder(tmp_path / "a")
    assert first == digest_of_folder(tmp_path / "b") != digest_of_folder(tmp_path / "c")
    seal(tmp_path / "a")
    assert digest_of_folder(tmp_path / "a") == first
    (tmp_path / "a" / "file").rename(tmp_path / "a" / "other")
    assert digest_of_folder(tmp_path / "a") != first
    with pytest.raises(CheckpointError, match="not a folder"):
        digest_of_folder(tmp_path / "nothing")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with atomic_path(path) as beside:
        beside.write_text("old", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as beside:
        beside.write_text("new", encoding="utf-8")
        raise KeyboardInterrupt
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
    assert path.read_text(encoding="utf-8") == "old"


def test_a_failed_folder_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for text in ("first", "second"):
        with atomic_folder(path) as beside:
            (beside / text).write_text(text, encoding="utf-8")
    with pytest.raises(ZeroDivisionError), atomic_folder(path) as beside:
        (beside / "third").write_text("third", encoding="utf-8")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert [p.name for p in path.iterdir()] == ["second"]


def test_a_folder_lost_between_two_renames_is_put_back(tmp_path: Path) -> None:
    (tmp_path / "folder.old.tmp").mkdir()
    (tmp_path / "folder.old.tmp" / "kept").touch()
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "folder"):
        raise ZeroDivisionError
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["kept"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_process_killed_while_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    program = (
        "import itertools, sys, torch\n"
        "from tokvid.checkpoint import save_state, step_folder\n"
        "for step in itertools.count(1):\n"
        "    save_state(step_folder(sys.argv[1], step), {'w': torch.full((100_000,), float(step))}, {'step': step})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while newest_valid(tmp_path).step < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = newest_valid(tmp_path)
    assert found.path is not None and found.step >= 3 and found.torn == []
    saved = load_state(found.path)
    assert saved.state == {"step": found.step} and saved.tensors["w"].eq(found.step).all()


def test_random_states_come_back(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.normal()), float(torch.randn(()))

    draw()
    save_state(tmp_path / "s", {}, random_state())
    expected = [draw() for _ in range(3)]
    restore_random_state(load_state(tmp_path / "s").state)
    assert [draw() for _ in range(3)] == expected
    with pytest.raises(CheckpointError, match="CUDA devices"):
        restore_random_state({**random_state(), "cuda": [torch.zeros(1)] * 99})


def test_a_new_run_wants_an_output_without_checkpoints(tmp_path: Path) -> None:
    check_unused(tmp_path / "nowhere")
    (tmp_path / "notes").mkdir()
    check_unused(tmp_path)
    for step in (4, 6):
        step_folder(tmp_path, step).mkdir()
    with pytest.raises(CheckpointError, match=r"step-000006 is of an earlier run: add --resume"):
        check_unused(tmp_path)
    assert checkpoints(tmp_path) == [step_folder(tmp_path, step) for step in (4, 6)]
