"""Runs that are killed at random steps and resumed end with the very weights of one that was never killed.

``make soak`` kills each run twenty times, language models also in ZeRO 2 and 3; the test suite kills two of them twice.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.integration.processes import TIMEOUT_S, environment, torchrun
from tests.lm import tiny_run as tiny_lm
from tests.tokenizers import tiny_run as tiny_codec
from tokvid.config import to_mapping
from tokvid.optimizer import AdamWConfig
from tokvid.run_lock import LOCK_FILE
from tokvid.training_log import read_log
from tokvid_tokenizers.discriminator import DiscriminatorConfig
from tokvid_tokenizers.losses.adversarial import AdversarialConfig
from tokvid_tokenizers.quantizers import VQConfig

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("TOKVID_SOAK_KILLS", "0"))
STEPS = 40

needs_soak = pytest.mark.skipif(not KILLS, reason="minutes of starting processes: make soak")
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra deepspeed")


def codec(output: Path, **training: Any) -> Any:
    """With an adversary, a codebook that follows the latents and restarts, and averaged weights."""
    adversary = AdversarialConfig(
        discriminator=DiscriminatorConfig(channels=8, layers=2),
        optimizer=AdamWConfig(learning_rate=1e-3),
        start_step=5,
        warmup_steps=3,
        ramp_steps=10,
        lecam=0.01,
        r1=0.1,
        r1_every=3,
    )
    settings = {"steps": STEPS, "checkpoint_every": 3, "log_every": 1, "validate_every": 10, "average_decay": 0.9}
    optimizer = AdamWConfig(learning_rate=1e-3)
    run = tiny_codec.recipe(output, adversarial=adversary, optimizer=optimizer, **{**settings, **training})
    quantizer = VQConfig(codebook_size=32, dim=4, restart_below=0.3)
    return replace(run, codec=replace(run.codec, quantizer=quantizer))


def language_model(output: Path, **training: Any) -> Any:
    """Three modes, a curriculum, packed rows."""
    mixture = [{"objective": objective} for objective in ("next_token", "maskgit", "frame", "caption")]
    settings = {"steps": STEPS, "checkpoint_every": 3, "validate_every": 10, "mixture": mixture, "pack": 192}
    curriculum = [{"steps": 10, "latent_frames": 1, "batch_size": 2}]
    run = tiny_lm.recipe(output, curriculum=curriculum, **{**settings, **training})
    return replace(run, model=replace(run.model, max_positions=192))


class Soaked:
    """A run in processes of its own; ``weights`` is its result in ``output``."""

    def __init__(self, recipe: Any, weights: str, processes: int) -> None:
        self.output = Path(recipe.output)
        self.weights = self.output / weights
        self._path = Path(f"{recipe.output}.yaml")
        self._path.write_text(yaml.safe_dump(to_mapping(recipe)), encoding="utf-8")
        self._said = Path(f"{recipe.output}.stderr")
        self._python = torchrun(processes) if processes > 1 else [sys.executable]

    def start(self) -> subprocess.Popen[bytes]:
        """Begin or go on, in a group of processes of its own."""
        (self.output / LOCK_FILE).unlink(missing_ok=True)  # of a killed run: its return says that this one is under way
        # Into a file: a pipe that nobody reads stops the run when it is full.
        with self._said.open("w", encoding="utf-8") as said:
            return subprocess.Popen(
                [*self._python, "-m", "tokvid", "train", str(self._path), "--resume"],
                cwd=self._path.parent,
                env=environment(),
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )

    def finish(self) -> bytes:
        """The weights at the end."""
        process = self.start()
        assert process.wait(timeout=TIMEOUT_S) == 0, self._said.read_text(encoding="utf-8")
        return self.weights.read_bytes()

    def kill_at(self, step: int) -> None:
        """Kill all processes by SIGKILL when the log has the line of ``step``."""
        process = self._run_to(step)
        # torchrun starts its processes in sessions of their own: a signal to its group leaves them running.
        started = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in started:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        assert process.wait() == -signal.SIGKILL, self._said.read_text(encoding="utf-8")
        assert not psutil.wait_procs(started, timeout=60)[1]

    def ask_to_stop_at(self, step: int) -> str:
        """Send SIGTERM to all processes, as schedulers do, when the log has the line of ``step``; what they say."""
        process = self._run_to(step)
        os.killpg(process.pid, signal.SIGTERM)
        code, said = process.wait(timeout=TIMEOUT_S), self._said.read_text(encoding="utf-8")
        assert code not in (0, -signal.SIGKILL), said
        return said

    def _run_to(self, step: int) -> subprocess.Popen[bytes]:
        process = self.start()
        while process.poll() is None and not self._has(step):
            time.sleep(0.002)
        return process

    def _has(self, step: int) -> bool:
        lines = read_log(self.output / "log.jsonl")
        return (self.output / LOCK_FILE).exists() and bool(lines) and lines[-1]["step"] >= step


@pytest.mark.parametrize(
    ("make", "weights", "processes", "training"),
    [
        pytest.param(codec, "codec/model.safetensors", 1, {}, id="codec with adversary"),
        pytest.param(language_model, "lm/model.safetensors", 1, {}, id="language model"),
        *(
            pytest.param(
                language_model,
                "lm/model.safetensors",
                2,
                {"deepspeed": f"zero{stage}", "mixture": [{"objective": "next_token"}]},
                id=f"language model, ZeRO {stage}",
                marks=[needs_soak, needs_deepspeed],
            )
            for stage in (2, 3)
        ),
    ],
)
def test_killed_runs_end_with_the_same_weights(
    make: Callable[..., Any], weights: str, processes: int, training: dict[str, Any], tmp_path: Path
) -> None:
    expected = Soaked(make(tmp_path / "whole", **training), weights, processes).finish()
    run = Soaked(make(tmp_path / "killed", **training), weights, processes)
    steps = range(1, STEPS - 1)
    for step in sorted(random.Random(STEPS).sample(steps, min(KILLS or 2, len(steps)))):
        run.kill_at(step)
    assert run.finish() == expected


@pytest.mark.parametrize(
    ("make", "weights"), [(codec, "codec"), (language_model, "lm")], ids=["codec", "language model"]
)
@pytest.mark.parametrize("processes", [1, 2])
def test_runs_that_are_asked_to_stop_save_first(
    make: Callable[..., Any], weights: str, processes: int, tmp_path: Path
) -> None:
    file = f"{weights}/model.safetensors"
    # Processes and threads that load data are sent the signal, too.
    loading = {"loading_workers": 2} if make is language_model else {}
    expected = Soaked(make(tmp_path / "whole"), file, processes).finish()
    run = Soaked(make(tmp_path / "stopped", **loading), file, processes)
    said = run.ask_to_stop_at(7)
    assert re.search(r"interrupted: stopped at step \d+; .*step-0000\d\d is saved, add --resume to go on", said), said
    assert "Error" not in said.partition("ChildFailedError")[0]
    assert run.finish() == expected
