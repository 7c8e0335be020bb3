"""Blocks that torch.compile made programs of: the numbers of eager ones up to rounding, nothing else is different."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from tests.tokenizers.lively import ALL_KINDS, noise, smallest_codec
from tests.tokenizers.tiny_run import killed_at, lines, recipe
from tokvid import runtime
from tokvid.checkpoint import load_state, step_folder
from tokvid.config import to_mapping
from tokvid.data.clips import ClipArray
from tokvid_tokenizers import load_codec
from tokvid_tokenizers.layers.stack import compile_blocks, recompute_blocks
from tokvid_tokenizers.training import CODEC_FOLDER, train_codec

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _compiles_anew() -> None:
    """As a new process does: what torch compiled in one test would count among the shapes of the next."""
    torch._dynamo.reset()


def compiled_frames() -> int:
    return counters["frames"]["ok"]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_gradients_are_those_of_eager_blocks(kind: str) -> None:
    codec, frames = smallest_codec(config=ALL_KINDS[kind]).train(), noise(2, 3, 9, 16, 16)
    names = list(codec.state_dict())
    results = []
    for compiled, recompute in ((False, False), (True, False), (True, True)):
        compile_blocks(codec, compiled)
        recompute_blocks(codec, recompute)
        before = compiled_frames()
        output = codec(frames)
        assert (compiled_frames() > before) == (compiled and not recompute)
        (output.frames - frames).square().mean().backward()
        gradients = {name: p.grad.clone() for name, p in codec.named_parameters() if p.grad is not None}
        results.append({**gradients, "frames": output.frames.detach()})
        codec.zero_grad()
    eager, compiled_once, compiled_twice = results
    assert set(eager) == {*dict(codec.named_parameters()), "frames"} and list(codec.state_dict()) == names
    for name, numbers in eager.items():
        torch.testing.assert_close(compiled_once[name], numbers, rtol=1e-3, atol=1e-6, msg=name)
        assert torch.equal(compiled_once[name], compiled_twice[name]), name


def test_only_training_is_compiled() -> None:
    codec, eager, frames = smallest_codec(), smallest_codec(), noise(1, 3, 9, 12, 12)
    compile_blocks(codec)
    before = compiled_frames()
    codes = codec.encode(frames)
    assert torch.equal(codes, eager.encode(frames))
    assert torch.equal(codec.decode(codes), eager.decode(codes))
    with torch.no_grad():
        assert torch.equal(codec(frames).frames, eager(frames).frames)
    assert compiled_frames() == before


def test_a_copy_computes_with_its_own_weights() -> None:
    codec, frames = smallest_codec(), noise(2, 3, 9, 16, 16)
    compile_blocks(codec)
    output = codec(frames).frames
    other = copy.deepcopy(codec)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    assert not torch.allclose(other(frames).frames, output)
    compile_blocks(other, False)
    assert not torch.allclose(other(frames).frames, output)
    assert torch.equal(codec(frames).frames, output)


@pytest.fixture(scope="module")
def compiled_run(tmp_path_factory: pytest.TempPathFactory, clips: tuple[ClipArray, ClipArray]) -> Path:
    output = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "usable_cores", lambda: 1)
        before = compiled_frames()
        train_codec(recipe(output, compile=True), *clips)
    assert compiled_frames() > before
    return output


def assert_same_up_to_rounding(output: Path, straight: Path) -> None:
    for ours, theirs in zip(lines(output), lines(straight), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("l1", "l2", "psnr", "gradient norm"):
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3), (name, ours, theirs)
    assert (output / CODEC_FOLDER / "config.json").read_bytes() == (
        straight / CODEC_FOLDER / "config.json"
    ).read_bytes()


def test_a_compiled_run_is_the_eager_run_up_to_rounding(compiled_run: Path, straight: Path) -> None:
    assert_same_up_to_rounding(compiled_run, straight)
    ours, theirs = (load_state(step_folder(folder, 12)) for folder in (compiled_run, straight))
    assert list(ours.tensors) == list(theirs.tensors)
    assert ours.state["recipe"] == theirs.state["recipe"]
    assert load_codec(compiled_run / CODEC_FOLDER).state_dict().keys() == ours.tensors.keys()


def test_a_compiled_run_that_died_and_went_on_is_the_same_run(
    tmp_path: Path, compiled_run: Path, clips: tuple[ClipArray, ClipArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at(monkeypatch, 9, recipe(tmp_path, compile=True), clips)
    train_codec(recipe(tmp_path, compile=True), *clips, resume=True)
    weights = Path(CODEC_FOLDER, "model.safetensors")
    assert (tmp_path / weights).read_bytes() == (compiled_run / weights).read_bytes()


@pytest.mark.parametrize("first", [False, True])
def test_an_eager_run_goes_on_compiled_and_the_other_way(
    tmp_path: Path, straight: Path, clips: tuple[ClipArray, ClipArray], monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    killed_at(monkeypatch, 9, recipe(tmp_path, compile=first), clips)
    train_codec(recipe(tmp_path, compile=not first), *clips, resume=True)
    assert_same_up_to_rounding(tmp_path, straight)


def test_without_a_compiler_nothing_is_begun(tmp_path: Path) -> None:
    run = tmp_path / "run"
    mapping = to_mapping(recipe(run, compile=True))
    (tmp_path / "recipe.yaml").write_text(json.dumps(mapping), encoding="utf-8")
    (tmp_path / "empty").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
    done = subprocess.run(
        [sys.executable, "-m", "tokvid.cli.main", "train", str(tmp_path / "recipe.yaml")],
        cwd=ROOT,
        # What an earlier run compiled lies in the cache; PATH leads nowhere.
        env={
            **environment,
            "PATH": str(tmp_path / "empty"),
            "CUDA_VISIBLE_DEVICES": "",
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tokenizers")]),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "torch.compile does not work here" in last and "install a C++ compiler (g++)" in last
    assert "Traceback" not in done.stderr and not list(run.glob("*"))
