"""Two processes train one codec and its adversary: what one process would learn, through DDP and DeepSpeed.

Adversarial training is chaotic: two runs that differ in a last bit part after some tens of steps. The first twenty are
compared.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.tokenizers.lively import SMALLEST
from tests.tokenizers.tiny_run import assert_same_run, lines, recipe
from tokvid.checkpoint import newest_valid
from tokvid.config import to_mapping
from tokvid.data.clips import ClipArray
from tokvid.errors import ConfigError
from tokvid.optimizer import AdamWConfig, MuonConfig
from tokvid_tokenizers.discriminator import DiscriminatorConfig
from tokvid_tokenizers.engine import check_settings
from tokvid_tokenizers.losses.adversarial import AdversarialConfig
from tokvid_tokenizers.quantizers import KLConfig, LFQConfig, QuantizerConfig, VQConfig
from tokvid_tokenizers.training import CODEC_FOLDER, train_codec
from tokvid_tokenizers.training_config import CodecRecipe

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (ROOT, ROOT / "tokenizers", ROOT / "lm")
ADAMW = AdamWConfig(learning_rate=1e-3)
ADVERSARY = AdversarialConfig(
    discriminator=DiscriminatorConfig(channels=8, layers=2),
    optimizer=AdamWConfig(learning_rate=1e-3),
    start_step=1,
    warmup_steps=1,
    ramp_steps=2,
    lecam=0.01,
    r1=0.1,
    r1_every=2,
)
STEPS = 20
HALF = STEPS // 2

needs_processes = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has one process alone")


def needs_deepspeed() -> None:
    if find_spec("deepspeed") is None:
        pytest.skip("needs the extra deepspeed")


def zero(folder: Path, stage: int, **settings: Any) -> str:
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps({"gradient_clipping": "auto", "zero_optimization": {"stage": stage}, **settings}))
    return str(path)


def short(output: Path, quantizer: QuantizerConfig | None = None, **training: Any) -> CodecRecipe:
    settings: dict[str, Any] = {"steps": STEPS, "adversarial": ADVERSARY, "average_decay": 0.9, "log_every": 1}
    run = recipe(output, **{**settings, **training})
    return run if quantizer is None else replace(run, codec=replace(SMALLEST, quantizer=quantizer))


def start(run: CodecRecipe, *arguments: str, processes: int = 2) -> subprocess.Popen[str]:
    """The command, by torchrun where there are to be several of it."""
    path = Path(f"{run.output}.yaml")
    path.write_text(yaml.safe_dump(to_mapping(run)), encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else ()), "-m", "tokvid", "train", str(path), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SOURCES)), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=path.parent)


def launch(run: CodecRecipe, *arguments: str, processes: int = 2) -> str:
    """What a run printed that went well."""
    process = start(run, *arguments, processes=processes)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Building extension" not in out + err, "nothing is built just in time"
    return out


def assert_nearly_same(together: Path, alone: Path, *, tolerance: float = 1e-4) -> None:
    """Every figure of every line of the log, and the weights that were saved."""
    assert len(lines(together)) == len(lines(alone)) == STEPS
    for line, expected in zip(lines(together), lines(alone), strict=True):
        assert line == pytest.approx(expected, rel=tolerance, abs=1e-6), line["step"]
    weights, expected_weights = (load_file(run / CODEC_FOLDER / "model.safetensors") for run in (together, alone))
    for name, tensor in expected_weights.items():
        difference = weights[name].float() - tensor.float()
        assert difference.norm() <= tolerance * tensor.float().norm() + 1e-6, name


@needs_processes
@pytest.mark.slow
@pytest.mark.parametrize(
    ("deepspeed", "quantizer", "optimizer"),
    [
        (None, VQConfig(codebook_size=32, dim=4, restart_below=0.3), MuonConfig()),
        (None, VQConfig(codebook_size=32, dim=4, restart_below=0.3), ADAMW),
        (None, LFQConfig(codebook_size=64, dim=4), ADAMW),
        ("zero0", None, MuonConfig()),
        ("zero0", None, ADAMW),
        ("zero1", KLConfig(dim=4, weight=1e-3), ADAMW),
        ("zero2", VQConfig(codebook_size=32, dim=4), ADAMW),
        ("zero2-offload", None, ADAMW),
    ],
    ids=[
        "DDP VQ Muon",
        "DDP VQ AdamW",
        "DDP LFQ AdamW",
        "ZeRO 0 FSQ Muon",
        "ZeRO 0 FSQ AdamW",
        "ZeRO 1 KL AdamW",
        "ZeRO 2 VQ AdamW",
        "ZeRO 2 offloaded FSQ AdamW",
    ],
)
def test_two_processes_learn_what_one_does(
    deepspeed: str | None,
    quantizer: QuantizerConfig | None,
    optimizer: Any,
    tmp_path: Path,
    clips: tuple[ClipArray, ClipArray],
) -> None:
    if deepspeed is not None:
        needs_deepspeed()
    together = short(tmp_path / "two", quantizer, optimizer=optimizer, deepspeed=deepspeed)
    printed = json.loads(launch(together))  # once, and whole
    assert printed["codec"] == str(tmp_path / "two" / CODEC_FOLDER)
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1 and not list(tmp_path.rglob("*.tmp"))
    train_codec(short(tmp_path / "one", quantizer, optimizer=optimizer), *clips)
    # Muon makes a bf16 matrix of the gradient orthogonal, in which a last bit grows.
    tolerance = 5e-2 if isinstance(optimizer, MuonConfig) else 1e-4
    assert_nearly_same(tmp_path / "two", tmp_path / "one", tolerance=tolerance)


@needs_processes
@pytest.mark.slow
def test_two_processes_leave_the_same_clips_unrounded(tmp_path: Path, clips: tuple[ClipArray, ClipArray]) -> None:
    settings: dict[str, Any] = {"optimizer": ADAMW, "unrounded_share": 0.5}
    launch(short(tmp_path / "two", None, **settings))
    train_codec(short(tmp_path / "one", None, **settings), *clips)
    assert_nearly_same(tmp_path / "two", tmp_path / "one", tolerance=1e-4)


def back_to(output: Path, step: int) -> None:
    """As if the run had been killed after it wrote the checkpoint of ``step``."""
    for folder in (*output.glob("step-*"), output / CODEC_FOLDER):
        if folder.name != f"step-{step:06d}":
            shutil.rmtree(folder)


def replace_settings(run: CodecRecipe, output: Path, deepspeed: str | None) -> CodecRecipe:
    return replace(run, output=str(output), training=replace(run.training, deepspeed=deepspeed))


@needs_processes
@pytest.mark.slow
def test_two_processes_under_zero_resume_exactly(tmp_path: Path) -> None:
    needs_deepspeed()
    run = short(tmp_path / "run", optimizer=ADAMW, checkpoint_every=HALF, deepspeed=zero(tmp_path, 2))
    launch(run)
    shutil.copytree(tmp_path / "run", tmp_path / "straight")
    back_to(tmp_path / "run", HALF)
    launch(run, "--resume")
    assert_same_run(tmp_path / "run", tmp_path / "straight")

    # The checkpoint holds the optimizer whole: as many processes as there are go on, by ZeRO or without.
    for name, deepspeed, processes in (
        ("one", zero(tmp_path, 2), 1),
        ("two", zero(tmp_path, 1), 2),
        ("plain", None, 2),
    ):
        shutil.copytree(tmp_path / "straight", tmp_path / name)
        back_to(tmp_path / name, HALF)
        launch(replace_settings(run, tmp_path / name, deepspeed), "--resume", processes=processes)
        assert_nearly_same(tmp_path / name, tmp_path / "straight")


@needs_processes
@pytest.mark.slow
def test_deepspeed_without_a_launcher_is_a_process_by_itself(
    tmp_path: Path, clips: tuple[ClipArray, ClipArray]
) -> None:
    needs_deepspeed()
    printed = launch(short(tmp_path / "zero", optimizer=ADAMW, deepspeed=zero(tmp_path, 1)), processes=1)
    assert json.loads(printed)["codec"] == str(tmp_path / "zero" / CODEC_FOLDER)
    train_codec(short(tmp_path / "plain", optimizer=ADAMW), *clips)
    assert_nearly_same(tmp_path / "zero", tmp_path / "plain")


@needs_processes
@pytest.mark.slow
def test_one_process_goes_on_with_what_two_began(tmp_path: Path, clips: tuple[ClipArray, ClipArray]) -> None:
    run = short(tmp_path / "two", optimizer=ADAMW, checkpoint_every=HALF)
    launch(run)
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    back_to(tmp_path / "one", HALF)
    train_codec(replace(run, output=str(tmp_path / "one")), *clips, resume=True)
    assert_nearly_same(tmp_path / "one", tmp_path / "two")


@needs_processes
@pytest.mark.slow
def test_ctrl_c_stops_both_at_one_step_and_saves_it(tmp_path: Path) -> None:
    process = start(short(tmp_path / "run", steps=100_000, checkpoint_every=100_000, validate_every=100_000))
    try:
        while not (tmp_path / "run" / "log.jsonl").exists() or not lines(tmp_path / "run"):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    saved = newest_valid(tmp_path / "run")
    assert saved.path is not None and not saved.torn
    assert err.count(f"stopped at step {saved.step}; {saved.path} is saved, add --resume to go on") == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gradient_clipping": 0.5}, 'gradient_clipping is 0.5, the recipe says 1.0; write "auto"'),
        ({"train_batch_size": 8}, "train_batch_size is 8, the recipe says 4"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps is 2, the recipe says 1"),
        ({"bf16": {"enabled": True}}, "leave it out and set training.precision to bf16"),
        ({"zero_optimization": {"stage": 3}}, "ZeRO 3 takes the decoder's last layer apart"),
        ({"zero_optimization": {"stage": 1}}, "Muon needs whole matrices: use adamw .* or ZeRO stage 0"),
    ],
)
def test_settings_that_contradict_the_recipe_are_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    training = short(tmp_path).training
    with pytest.raises(ConfigError, match=words):
        check_settings({"gradient_clipping": "auto", **settings}, training)
    agreeing = {"gradient_clipping": 1.0, "train_batch_size": 4, "bf16": {"enabled": "auto"}}
    check_settings(agreeing, training)
    check_settings({**agreeing, "zero_optimization": {"stage": 2}}, replace(training, optimizer=ADAMW))
