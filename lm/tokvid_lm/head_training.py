"""Training the diffusion head of a video language model, which stays as it is, and so does its codec.

One plain loop in one process. A run is a function of its recipe: interrupted and resumed it ends with the same weights
as one that never stopped (same machine, same threads).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
from tokvid.config_checks import at_least, is_share, less_than, positive
from tokvid.data.clips import ClipArray, DataConfig, SpriteDataConfig
from tokvid.errors import ConfigError, DataError, ModelError
from tokvid.frames import to_model
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
from tokvid.run_lock import check_output, only_run
from tokvid.runtime import default_device, loading_dtype, prepare
from tokvid.training_log import TrainingLog, check_finite
from tokvid.weights import check_weights
from tokvid_lm.diffusion_head import DiffusionHead, DiffusionHeadConfig, HeadConfig
from tokvid_lm.hybrid import Refinement, conditions, finished, hidden_size
from tokvid_lm.samplers.runner import sampling_from
from tokvid_lm.segments import TextSegment
from tokvid_lm.templates import VideoHeader
from tokvid_lm.video_lm import VideoLM

LM_FOLDER = "lm"
RECIPE_FILE = "recipe.json"
_COUNTED = 256
"""Clips that the statistics of the latents are taken from."""
# What Muon leaves to Adam: maps from and to latents, conditions and times.
_ADAM_NAMES = ("latent_in", "condition_in", "time_in", "latent_out")


@dataclass(frozen=True, kw_only=True)
class HeadTrainingConfig:
    """``batch_size`` clips a step. ``prompt_drop`` of them lose their caption, as in the training of the model.

    Rates rise over ``warmup_steps`` and fall along a line to zero at ``steps``.
    """

    steps: int = 600
    batch_size: int = 16
    optimizer: OptimizerConfig = field(default_factory=lambda: MuonConfig(learning_rate=0.01, adam_learning_rate=0.002))
    warmup_steps: int = 30
    gradient_clip: float = 1.0
    prompt_drop: float = 0.0
    log_every: int = 10
    checkpoint_every: int = 200
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints")
        positive(self, "gradient_clip")
        less_than(self, "warmup_steps", "steps")
        is_share(self, "prompt_drop")


@dataclass(frozen=True, kw_only=True)
class HeadRecipe:
    """``lm`` is the model, by folder or name. ``output`` gets ``lm/``, the model with its head, the log, checkpoints.

    The head learns from videos of every mode that the model was trained in, in turn.
    """

    task: Literal["head"] = "head"
    seed: int = 0
    output: str
    lm: str
    data: DataConfig = field(default_factory=SpriteDataConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    training: HeadTrainingConfig = field(default_factory=HeadTrainingConfig)
    refinement: Refinement = field(default_factory=Refinement)


def train_head(recipe: HeadRecipe, clips: ClipArray, *, lm: VideoLM | None = None, resume: bool = False) -> VideoLM:
    """Train a head for the model of ``recipe``; the model with it is saved in ``<output>/lm`` and given back.

    ``lm`` spares loading ``recipe.lm``. Raises :class:`TrainingError` at a step whose loss is not finite, and
    ``KeyboardInterrupt`` with one line for the user after Ctrl-C, when a checkpoint has been written.
    """
    output = Path(recipe.output)
    check_output(output, resume=resume)
    prepare(recipe.seed)
    if world_size() > 1:
        raise ConfigError(f"a head is trained in one process, and this is one of {world_size()}: start one")
    lm = lm or VideoLM.from_pretrained(recipe.lm, dtype=loading_dtype()).to(default_device())
    lm.sampling_for(None)  # says so where the model draws no videos
    if lm.vocabulary.num_actions:
        raise ModelError(
            f"this model draws videos from {lm.vocabulary.num_actions} actions, and the clips that a head learns from"
            " have none: there are no heads for such models yet"
        )
    trainer = _HeadTrainer(recipe, lm, clips)
    with only_run(output):
        if resume:
            trainer.resume()
        else:
            check_unused(output)  # that run may have ended meanwhile
        write_text(output / RECIPE_FILE, json.dumps(to_mapping(recipe), indent=2) + "\n")
        trainer.run()
        lm.diffusion_head, lm.refinement = trainer.head.eval(), recipe.refinement
        lm.save_pretrained(output / LM_FOLDER)
    return lm


class _HeadTrainer:
    def __init__(self, recipe: HeadRecipe, lm: VideoLM, clips: ClipArray) -> None:
        self.recipe, self.config, self.lm, self.clips = recipe, recipe.training, lm, clips
        if len(clips) < self.config.batch_size:
            raise DataError(f"a batch needs {self.config.batch_size} clips, the data has {len(clips)}: add clips")
        self.device = lm.model.device
        self.modes = [sampling.mode for sampling in lm.settings.sampling]
        self.step = 0
        self._build(*self._statistics())

    def _build(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        channels = self.lm.codec.quantizer.dim
        config = DiffusionHeadConfig(
            condition_dim=channels + hidden_size(self.lm),
            mean=tuple(mean),
            deviation=tuple(deviation),
            **to_mapping(self.recipe.head),
        )
        self.head = DiffusionHead(config).to(self.device)
        self.optimizer = build_optimizer(self.config.optimizer, self.head, adam_names=_ADAM_NAMES)

    def run(self) -> None:
        """Train to the last step; a checkpoint is due after the last one, too."""
        log = TrainingLog(
            self.recipe.output,
            self.config.steps,
            "cells/s",
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
                    raise KeyboardInterrupt(f"stopped at step {self.step}; {folder} is saved, add --resume to go on")
        check_weights(self.step, self.head.state_dict())

    def _train_step(self, log: TrainingLog) -> None:
        # What the loss draws is a function of the step, so that a resumed run draws the same.
        torch.manual_seed(int(np.random.SeedSequence([self.recipe.seed, self.step]).generate_state(1)[0]))
        with log.waiting():
            given, difference = self._batch(self._clips(self.step), self.modes[self.step % len(self.modes)])
        loss = self.head.loss(difference, given)
        check_finite(self.step + 1, {"loss": loss.detach()})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), self.config.gradient_clip)
        share = warmup_then_linear(self.step, warmup_steps=self.config.warmup_steps, steps=self.config.steps)
        set_learning_rate(self.optimizer, share)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        log.step(self.step, {"loss": float(loss.detach())}, {}, amount=len(difference))
        if self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps:
            self._save()

    def _clips(self, step: int) -> Sequence[int]:
        """The numbers of the clips of a batch: each pass over the clips is a new order."""
        size, total = self.config.batch_size, len(self.clips)
        turn, place = divmod(step, total // size)
        order = np.random.default_rng([self.recipe.seed, turn]).permutation(total)
        numbers: list[int] = order[place * size : (place + 1) * size].tolist()
        return numbers

    def _batch(self, numbers: Sequence[int], mode: Any) -> tuple[Tensor, Tensor]:
        """What the head is given and what it is to draw, ``[N,D+H]`` and ``[N,D]``, of all cells of some clips."""
        lm = self.lm
        codes, difference = self._coded(numbers)
        grid = lm.codec.grid_for(*self.clips.frames.shape[1:4])
        header = VideoHeader(grid=grid, mode=mode, fps=self.clips.fps)
        dropped = torch.rand(len(numbers)) < self.config.prompt_drop
        documents = [
            finished(lm, [] if drop else [TextSegment(self.clips.captions[number])], code, header)
            for number, code, drop in zip(numbers, codes.cpu(), dropped.tolist(), strict=True)
        ]
        with sampling_from(lm.model, None):
            given = conditions(lm, documents, codes)
        return given.flatten(0, 3).clone(), difference

    def _coded(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Codes ``[B,K,t,h,w]`` of clips, and what they lost of the latents, ``[N,D]``."""
        codec = self.lm.codec
        frames = to_model(self.clips.frames[np.asarray(numbers)]).to(self.device)
        with torch.no_grad():
            codes = codec.encode(frames)
            lost = codec.unrounded_latents(frames) - codec.quantizer.dequantize(codes).float()
        return codes, lost.permute(0, 2, 3, 4, 1).flatten(0, 3)

    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel of the differences."""
        count = min(_COUNTED, len(self.clips))
        parts = [
            self._coded(range(start, min(start + self.config.batch_size, count)))[1]
            for start in range(0, count, self.config.batch_size)
        ]
        lost = torch.cat(parts).double()
        return tuple(lost.mean(0).tolist()), tuple(lost.std(0).tolist())

    def _save(self) -> Path:
        check_weights(self.step, self.head.state_dict())
        folder = step_folder(self.recipe.output, self.step)
        state = {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "recipe": self._facts(),
            "statistics": [list(self.head.config.mean), list(self.head.config.deviation)],
        }
        save_state(folder, self.head.state_dict(), state)
        keep_last(self.recipe.output, self.config.keep_checkpoints)
        return folder

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        newest = newest_valid(self.recipe.output)
        tell_newest(newest)
        if newest.path is None:
            return
        saved = load_state(newest.path)
        others = {"clips": "the clips", "model": "the models", "codec": "the codecs"}
        check_same_run(newest.path, saved.state.get("recipe"), self._facts(), others=others)
        self._build(*saved.state["statistics"])
        self.head.load_state_dict(saved.tensors)
        load_optimizer(self.optimizer, saved.state["optimizer"])
        self.step = saved.state["step"]

    @functools.cache  # noqa: B019 - of the one trainer of a run
    def _facts(self) -> dict[str, Any]:
        """What a checkpoint must agree with: the recipe, the clips, the model and its codec."""
        facts = to_mapping(self.recipe)
        facts["training"] = {
            name: value
            for name, value in facts["training"].items()
            if name not in ("log_every", "checkpoint_every", "keep_checkpoints")
        }
        kept = {name: value for name, value in facts.items() if name not in ("output", "lm", "refinement")}
        clips = hashlib.sha256(self.clips.frames.tobytes())
        clips.update("\0".join(self.clips.captions).encode())
        weights = hashlib.sha256()
        for tensor in self.lm.model.state_dict().values():
            weights.update(tensor.float().contiguous().cpu().numpy().tobytes())
        digests = {"clips": clips.hexdigest(), "model": weights.hexdigest(), "codec": self.lm.codec.codec_id}
        found: dict[str, Any] = json.loads(json.dumps(kept | digests))
        return found
