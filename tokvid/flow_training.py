"""Training a diffusion head on examples that some frozen model gives: conditions, and what is to be drawn.

One plain loop in one process. A run is a function of its recipe: interrupted and resumed it ends with the same weights
as one that never stopped (same machine, same threads).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tokvid.atomic import write_text
from tokvid.checkpoint import (
    check_same_run,
    check_unused,
    keep_last,
    load_state,
    newest_valid,
    save_state,
    step_folder,
    tell_newest,
)
from tokvid.config import to_mapping
from tokvid.config_checks import at_least, less_than, positive
from tokvid.data.clip_source import spread
from tokvid.data.clips import ClipArray
from tokvid.diffusion_head import DiffusionHead, HeadConfig
from tokvid.errors import ConfigError, DataError
from tokvid.interruption import deferred_interrupt
from tokvid.optimizer import (
    MuonConfig,
    OptimizerConfig,
    build_optimizer,
    load_optimizer,
    set_learning_rate,
    warmup_then_linear,
)
from tokvid.processes import world_size
from tokvid.run_lock import only_run
from tokvid.training_log import TrainingLog, check_finite
from tokvid.weights import check_weights

RECIPE_FILE = "recipe.json"
_COUNTED = 256
"""Clips, spread over all, that the statistics of what is drawn are taken from."""
_WORDS = {"clips": "the clips", "model": "the models", "codec": "the codecs"}


@dataclass(frozen=True, kw_only=True)
class FlowTrainingConfig:
    """``batch_size`` clips a step. Rates rise over ``warmup_steps`` and fall along a line to zero at ``steps``."""

    steps: int = 600
    batch_size: int = 16
    optimizer: OptimizerConfig = field(default_factory=lambda: MuonConfig(learning_rate=0.01, adam_learning_rate=0.002))
    warmup_steps: int = 30
    gradient_clip: float = 1.0
    log_every: int = 10
    checkpoint_every: int = 200
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints")
        positive(self, "gradient_clip")
        less_than(self, "warmup_steps", "steps")


class FlowRecipe(Protocol):
    """What the recipes of heads have in common."""

    @property
    def seed(self) -> int: ...

    @property
    def output(self) -> str: ...

    @property
    def head(self) -> HeadConfig: ...

    @property
    def training(self) -> FlowTrainingConfig: ...


class Examples(Protocol):
    """Where a head's examples come from."""

    @property
    def adam_names(self) -> Sequence[str]:
        """Parts of the names of what Muon leaves to Adam."""
        ...

    def new_head(self, config: HeadConfig, mean: Sequence[float], deviation: Sequence[float]) -> DiffusionHead:
        """A head that was not trained."""
        ...

    def differences(self, clips: Sequence[int]) -> Tensor:
        """All that is to be drawn of some clips, ``[N,C]``, for its mean and deviation."""
        ...

    def batch(self, clips: Sequence[int], step: int) -> tuple[Any, Tensor]:
        """What is given, and what is to be drawn, ``[N,C]``; what is random in it draws from torch's generator."""
        ...

    def loss(self, head: DiffusionHead, given: Any, drawn: Tensor) -> Tensor:
        """What ``head`` learns by, of a batch."""
        ...


class FlowTrainer:
    """One training: its head, and the way to its last step. ``digests`` are those of the model and of the codec that
    give the examples; ``left_out`` names fields of the recipe that the run is no function of."""

    def __init__(
        self,
        recipe: FlowRecipe,
        clips: ClipArray,
        examples: Examples,
        *,
        device: torch.device,
        digests: Mapping[str, str],
        left_out: Sequence[str] = (),
    ) -> None:
        self.recipe, self.config, self.clips, self.examples = recipe, recipe.training, clips, examples
        if len(clips) < self.config.batch_size:
            raise DataError(f"a batch needs {self.config.batch_size} clips, the data has {len(clips)}: add clips")
        self.device = device
        self._digests, self._left_out = dict(digests), ("output", *left_out)
        self.step = 0
        self._build(*self._statistics())

    def _build(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        self.head = self.examples.new_head(self.recipe.head, mean, deviation).to(self.device)
        self.optimizer = build_optimizer(self.config.optimizer, self.head, adam_names=self.examples.adam_names)

    def run(self, *, resume: bool, keep: Callable[[DiffusionHead], None]) -> None:
        """Train to the last step, after which a checkpoint is due, too, and then ``keep`` the head."""
        output = Path(self.recipe.output)
        with only_run(output):
            if resume:
                self._resume()
            else:
                check_unused(output)  # that run may have ended meanwhile
            write_text(output / RECIPE_FILE, json.dumps(to_mapping(self.recipe), indent=2) + "\n")
            log = TrainingLog(
                output,
                self.config.steps,
                "tokens/s",
                start_step=self.step,
                title="diffusion head",
                every=self.config.log_every,
            )
            self.head.train()
            with log, deferred_interrupt() as interrupted:
                while self.step < self.config.steps:
                    self._train_step(log)
                    if interrupted():
                        folder = self._save()
                        raise KeyboardInterrupt(
                            f"stopped at step {self.step}; {folder} is saved, add --resume to go on"
                        )
            check_weights(self.step, self.head.state_dict())
            keep(self.head.eval())

    def _train_step(self, log: TrainingLog) -> None:
        # What is drawn is a function of the step, so that a resumed run draws the same.
        torch.manual_seed(int(np.random.SeedSequence([self.recipe.seed, self.step]).generate_state(1)[0]))
        with log.waiting():
            given, drawn = self.examples.batch(self._clips(self.step), self.step)
        loss = self.examples.loss(self.head, given, drawn)
        check_finite(self.step + 1, {"loss": loss.detach()})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), self.config.gradient_clip)
        share = warmup_then_linear(self.step, warmup_steps=self.config.warmup_steps, steps=self.config.steps)
        set_learning_rate(self.optimizer, share)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        log.step(self.step, {"loss": float(loss.detach())}, {}, amount=len(drawn))
        if self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps:
            self._save()

    def _clips(self, step: int) -> Sequence[int]:
        """The numbers of the clips of a batch: each pass over the clips is a new order."""
        size, total = self.config.batch_size, len(self.clips)
        turn, place = divmod(step, total // size)
        order = np.random.default_rng([self.recipe.seed, turn]).permutation(total)
        numbers: list[int] = order[place * size : (place + 1) * size].tolist()
        return numbers

    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel of what is drawn."""
        some, size = spread(len(self.clips), _COUNTED), self.config.batch_size
        parts = [self.examples.differences(some[start : start + size]) for start in range(0, len(some), size)]
        drawn = torch.cat(parts).double()
        return tuple(drawn.mean(0).tolist()), tuple(drawn.std(0).tolist())

    def _save(self) -> Path:
        check_weights(self.step, self.head.state_dict())
        folder = step_folder(self.recipe.output, self.step)
        state = {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "recipe": self._facts,
            "statistics": [list(self.head.config.mean), list(self.head.config.deviation)],
        }
        save_state(folder, self.head.state_dict(), state)
        keep_last(self.recipe.output, self.config.keep_checkpoints)
        return folder

    def _resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        newest = newest_valid(self.recipe.output)
        tell_newest(newest)
        if newest.path is None:
            return
        saved = load_state(newest.path)
        check_same_run(newest.path, saved.state.get("recipe"), self._facts, others=_WORDS)
        self._build(*saved.state["statistics"])
        self.head.load_state_dict(saved.tensors)
        load_optimizer(self.optimizer, saved.state["optimizer"])
        self.step = saved.state["step"]

    @functools.cached_property
    def _facts(self) -> dict[str, Any]:
        """What a checkpoint must agree with: the recipe, the clips, and what gives the examples."""
        facts = to_mapping(self.recipe)
        facts["training"] = {
            name: value
            for name, value in facts["training"].items()
            if name not in ("log_every", "checkpoint_every", "keep_checkpoints")
        }
        kept = {name: value for name, value in facts.items() if name not in self._left_out}
        clips = hashlib.sha256(self.clips.frames.tobytes())
        clips.update("\0".join(self.clips.captions).encode())
        found: dict[str, Any] = json.loads(json.dumps(kept | {"clips": clips.hexdigest()} | self._digests))
        return found


def check_one_process() -> None:
    """Raise :class:`ConfigError` in one of several processes."""
    if world_size() > 1:
        raise ConfigError(f"a head is trained in one process, and this is one of {world_size()}: start one")
