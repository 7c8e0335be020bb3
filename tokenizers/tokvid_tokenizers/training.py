"""Training a codec: one plain loop of named steps, the same in every process of a run.

A run is a function of its recipe: which clips make batch n depends on the seed and on n alone, so a run that is
interrupted and resumed gives the same numbers as one that never stopped (same machine, same number of threads). Of
several processes each computes its part of a batch; gradients and figures are those of the whole (see
:mod:`~tokvid_tokenizers.engine`), and the first process alone writes.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokvid.across_processes import (
    any_process,
    found_by_the_first,
    joined_processes,
    mean_over_processes,
    means_over_processes,
    rank_and_count,
    sum_over_processes,
    uniform_draws,
)
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
from tokvid.data.clips import ClipArray, ClipSource
from tokvid.deepspeed_config import read_deepspeed
from tokvid.errors import ConfigError, DataError
from tokvid.frames import to_model
from tokvid.interruption import deferred_interrupt
from tokvid.optimizer import build_optimizer, warmup_then_linear
from tokvid.report.pictures import contact_sheet, side_by_side
from tokvid.run_lock import only_run
from tokvid.runtime import computes_in_bf16, default_device, prepare
from tokvid.training_log import TrainingLog, check_finite
from tokvid.weights import check_weights
from tokvid_tokenizers.adversary import Adversary
from tokvid_tokenizers.codebook_watch import CodebookWatch
from tokvid_tokenizers.codec import VideoCodec
from tokvid_tokenizers.engine import build_engine, check_settings
from tokvid_tokenizers.evaluation import CodecEvaluation, Reconstructions, evaluate_reconstructions, reconstruct
from tokvid_tokenizers.feed import open_feed
from tokvid_tokenizers.layers.stack import compile_blocks, recompute_blocks
from tokvid_tokenizers.losses.reconstruction import reconstruction_loss
from tokvid_tokenizers.registry import load_codec
from tokvid_tokenizers.training_config import CodecRecipe
from tokvid_tokenizers.weight_average import WeightAverage

CODEC_FOLDER = "codec"
RECIPE_FILE = "recipe.json"
_CHECKPOINT = 2  # the version: 1 held the optimizer in ZeRO's parts
# The stems and heads touch pixels and latents, not hidden features; a codebook is a table.
ADAM_NAMES = ("stem", "head", "quantizer")


@dataclass(frozen=True, kw_only=True)
class TrainedCodec:
    """A finished run: the codec in evaluation mode, the folder it was saved in, and its figures on held-out clips.

    The figures are of exactly these ``reconstructions``, which were computed in fp32 as whoever loads the codec will:
    in the order of the held-out clips.
    """

    codec: VideoCodec
    folder: Path
    evaluation: CodecEvaluation
    reconstructions: Reconstructions


def train_codec(
    recipe: CodecRecipe, clips: ClipArray | ClipSource, held_out: ClipArray, *, resume: bool = False
) -> TrainedCodec:
    """Run ``recipe`` and save the codec in ``<output>/codec``.

    ``clips`` to train on are already in memory or, with ``training.clips: disk``, a source that is read as it goes.
    Raises :class:`TrainingError` at a step whose loss or weights are not finite (the last checkpoint stays), and
    ``KeyboardInterrupt`` with one line for the user after Ctrl-C, when a checkpoint has been written. A run that is not
    resumed wants an output without checkpoints: :class:`CheckpointError` names those of an earlier run.

    Started by a launcher (torchrun, deepspeed), every process calls this with the same arguments and gets the same
    codec; the folder is one that all of them see.
    """
    with joined_processes(alone=recipe.training.deepspeed is not None):
        trainer = CodecTrainer(recipe, clips, held_out)
        with trainer.feed, only_run(recipe.output, wanted=trainer.rank == 0):
            if resume:
                trainer.resume()
            else:
                check_unused(recipe.output)
            return trainer.run()


class CodecTrainer:
    """The state of one run in one of its processes, and the steps of its loop."""

    def __init__(self, recipe: CodecRecipe, clips: ClipArray | ClipSource, held_out: ClipArray) -> None:
        self.recipe = recipe
        self.config = recipe.training
        self.output = Path(recipe.output)
        self.rank, self.processes = rank_and_count()
        self.deepspeed = read_deepspeed(self.config.deepspeed)
        if self.deepspeed is not None:
            check_settings(self.deepspeed, self.config)
        self.feed = open_feed(recipe, clips, rank=self.rank, processes=self.processes)
        self.unreadable: set[str] = set()
        self.held_out = held_out.frames
        if not len(self.held_out):
            raise DataError(
                "there are no held-out clips to measure the codec with; add clips or keep back a larger share"
            )
        prepare(recipe.seed)
        self.device = default_device()
        # Where it is measured, processes may measure otherwise.
        self.bf16 = any_process(computes_in_bf16(self.config.precision), self.device)
        self.codec = starting_codec(recipe).to(self.device)
        recompute_blocks(self.codec, self.config.checkpoint_blocks)
        compile_blocks(self.codec, self.config.compile)
        optimizer = build_optimizer(self.config.optimizer, self.codec, adam_names=ADAM_NAMES)
        clip = self.config.gradient_clip
        self.engine = build_engine(self.codec, optimizer, clip=clip, deepspeed=self.deepspeed)
        adversarial = self.config.adversarial
        self.adversary = Adversary(adversarial, self.device, self.deepspeed) if adversarial else None
        decay = self.config.average_decay
        self.average = WeightAverage(self.codec, decay) if decay else None
        self.watch = CodebookWatch(recipe.codec.quantizer, self.codec) if self.codec.num_codebooks else None
        self.step = 0

    def run(self) -> TrainedCodec:
        """Train from the current step to the last, evaluate, save."""
        if self.rank == 0:
            write_text(self.output / RECIPE_FILE, json.dumps(to_mapping(self.recipe), indent=2) + "\n")
        if self.step == 0 and self.config.start_from is None:
            self.codec.calibrate(to_model(self.feed.first_look()).to(self.device))
            self.engine.weights_changed()
        log = TrainingLog(
            self.output,
            self.config.steps,
            "frames/s",
            start_step=self.step,
            title="codec",
            every=self.config.log_every,
            silent=self.rank > 0,
        )
        self.train_mode()
        with log, deferred_interrupt() as interrupted:
            while self.step < self.config.steps:
                self.train_step(log)
                if any_process(interrupted(), self.device):
                    folder = self.save_checkpoint()
                    raise KeyboardInterrupt(f"stopped at step {self.step}; {folder} is saved, add --resume to go on")
        if self.average is not None:
            self.codec.load_state_dict(self.average.average)
        check_weights(self.step, self.codec.state_dict())
        # Before it is measured, so that nothing that goes wrong there costs the training.
        if self.rank == 0:
            self.codec.save_pretrained(self.output / CODEC_FOLDER)
        codec = self.codec.eval()
        reconstructions = reconstruct(codec, self.held_out, batch_size=self.config.batch_size)
        return TrainedCodec(
            codec=codec,
            folder=self.output / CODEC_FOLDER,
            evaluation=evaluate_reconstructions(codec, self.held_out, reconstructions),
            reconstructions=reconstructions,
        )

    def train_mode(self) -> None:
        """What is trained is in training mode: a codebook that stays as it is must not follow the clips either."""
        self.codec.train()
        if self.config.trains == "decoder":
            self.codec.encoder.eval()
            self.codec.quantizer.eval()

    def train_step(self, log: TrainingLog) -> None:
        """One batch forward and backward, one step of the optimiser, and what is due after it."""
        # What a quantizer draws is a function of the step too, so that a resumed run draws the same.
        torch.manual_seed(int(np.random.SeedSequence([self.recipe.seed, self.step]).generate_state(1)[0]))
        with log.waiting():
            frames = self.batch(self.step)
        with self.autocast():
            output = self.engine.forward(frames, self.unrounded(len(frames)))
        losses = reconstruction_loss(self.config.loss, output.frames, frames)
        losses["quantizer"] = self.config.quantizer_loss.weight_at(self.step) * output.quantizer.loss.float()
        losses |= self.adversarial_loss(output.frames, losses)
        self.engine.backward(torch.stack(list(losses.values())).sum())
        losses = means_over_processes({name: loss.detach() for name, loss in losses.items()})
        check_finite(self.step + 1, losses)
        share = warmup_then_linear(self.step, warmup_steps=self.config.warmup_steps, steps=self.config.steps)
        check_finite(self.step + 1, {"gradient norm": self.engine.step(share)})
        figures = self.teach_adversary(frames, output.frames, share)
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        error = mean_over_processes((output.frames.detach().float() - frames).square().mean())
        # The peak to peak range of [-1, 1] is 2.
        values: dict[str, Any] = {"psnr": 10 * torch.log10(4 / error)}
        values |= means_over_processes(output.quantizer.stats) | figures
        values |= self.watch_codebook(output.quantizer.codes, log)
        values |= self.name_skipped(log)
        if self.step % self.config.validate_every == 0 and self.step < self.config.steps:
            check_weights(self.step, self.codec.state_dict())  # a codec refuses to decode with others
            values |= self.validate(log)
        log.step(self.step, losses, values, amount=self.processes * frames.shape[0] * frames.shape[2])
        # The last one too: a finished run that is resumed has nothing left to train, and gives the same codec.
        if self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps:
            self.save_checkpoint()

    def unrounded(self, clips: int) -> Tensor | None:
        """Of which clips of this batch the decoder sees latents that are not rounded, bool ``[B]``; None: of none."""
        share = self.config.unrounded_share
        return uniform_draws(clips, self.device) < share if share else None

    def adversarial_loss(self, reconstruction: Tensor, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the adversary adds to the codec's ``losses``, if there is one and it is listened to."""
        if self.adversary is None:
            return {}
        others = torch.stack(list(losses.values())).sum()
        with self.autocast():
            loss = self.adversary.codec_loss(self.step, reconstruction, others, self.codec.last_layer)
        return {} if loss is None else {"adversarial": loss}

    def teach_adversary(self, frames: Tensor, reconstruction: Tensor, share: float) -> dict[str, Tensor]:
        """One step of the adversary, if there is one; its figures."""
        if self.adversary is None:
            return {}
        with self.autocast():
            figures = self.adversary.learn(self.step, frames, reconstruction, share)
        check_finite(self.step + 1, figures)
        return figures

    def watch_codebook(self, codes: Tensor, log: TrainingLog) -> dict[str, float]:
        """Count the codes of this step; with a line of the log, what they say of the codebook."""
        if self.watch is None:
            return {}
        self.watch.update(codes)
        if self.step % self.config.log_every and self.step != self.config.steps:
            return {}
        figures, warning = self.watch.line()
        if warning and self.rank == 0:
            log.note(f"step {self.step}: {warning}")
        return figures

    def batch(self, step: int) -> Tensor:
        """Frames ``[B,3,T,H,W]`` of batch ``step``."""
        return to_model(self.feed.batch(step)).to(self.device)

    def name_skipped(self, log: TrainingLog) -> dict[str, float]:
        """Name the clips that were to be in this batch and did not decode, each once; how many they were."""
        for item in self.feed.skipped:
            if item.name not in self.unreadable:
                log.note(f"step {self.step}: skipped {item.name}: {item.reason}")
                self.unreadable.add(item.name)
        if self.config.clips != "disk":
            return {}
        skipped = torch.tensor(len(self.feed.skipped), device=self.device)
        return {"skipped_clips": float(sum_over_processes(skipped))}

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 arithmetic where it was chosen; parameters and optimiser stay fp32."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def validate(self, log: TrainingLog) -> dict[str, float]:
        """Figures of a fixed part of the held-out clips in the run's precision, and a strip of them in tensorboard."""
        clips = self.held_out[: self.config.validation_clips]
        self.codec.eval()
        with self.autocast(), self.average.in_place() if self.average else nullcontext():
            reconstructions = reconstruct(self.codec, clips, batch_size=self.config.batch_size)
        self.train_mode()
        result = evaluate_reconstructions(self.codec, clips, reconstructions)
        pairs = [side_by_side(*pair) for pair in zip(clips[:4], reconstructions.pictures[:4], strict=True)]
        log.pictures("held-out clips and reconstructions", contact_sheet(pairs), self.step)
        figures = {"held_out_psnr": result.psnr}
        return figures if result.codebook_usage is None else figures | {"held_out_usage": result.codebook_usage}

    def save_checkpoint(self) -> Path:
        """Write everything that the rest of the run depends on, whole or not at all."""
        check_weights(self.step, self.codec.state_dict())
        folder = step_folder(self.output, self.step)
        state = {"step": self.step, "bf16": self.bf16, "optimizer": self.engine.state(), "recipe": self.facts()}
        if self.adversary is not None:
            check_weights(self.step, self.adversary.network.state_dict())
            state["adversary"] = self.adversary.tensors()
            state["adversary_optimizer"] = self.adversary.engine.state()
        if self.average is not None:
            state["average"] = self.average.average
        if self.rank == 0:
            save_state(folder, self.codec.state_dict(), state)
            keep_last(self.output, self.config.keep_checkpoints)
        any_process(False, self.device)  # a process that ended here would take those with it that still write
        return folder

    def resume(self) -> None:
        """Continue from the newest whole checkpoint; a run without one starts from the beginning."""
        newest = found_by_the_first(lambda: newest_valid(self.output))
        tell_newest(newest, silent=self.rank > 0)
        if newest.path is None:
            return
        saved = load_state(newest.path)
        check_same_run(newest.path, saved.state.get("recipe"), self.facts(), others={"clips": "the clips"})
        self.codec.load_state_dict(saved.tensors)
        self.engine.load(saved.state["optimizer"])
        self.engine.weights_changed()
        if self.adversary is not None:
            self.adversary.load(saved.state["adversary"], saved.state["adversary_optimizer"])
        if self.average is not None:
            self.average.load(saved.state["average"])
        self.bf16 = saved.state["bf16"]
        self.step = saved.state["step"]

    def facts(self) -> dict[str, Any]:
        """What a checkpoint must agree with: the clips, and of the recipe all that changes a number of the run.

        The videos of a folder can change under one recipe.
        """
        facts = to_mapping(self.recipe) | {"clips": self.feed.digest, "checkpoint_version": _CHECKPOINT}
        del facts["output"]
        quiet = {"log_every", "validate_every", "validation_clips", "checkpoint_every", "keep_checkpoints"}
        # A run that had too little memory, or moved to where there are more GPUs or no compiler, goes on.
        quiet |= {"loading_workers", "checkpoint_blocks", "compile", "deepspeed"}
        facts["training"] = {name: value for name, value in facts["training"].items() if name not in quiet}
        return json.loads(json.dumps(facts))  # type: ignore[no-any-return]


def starting_codec(recipe: CodecRecipe) -> VideoCodec:
    """The codec before the first step: new, or the one that the recipe starts from."""
    codec, start = VideoCodec(recipe.codec), recipe.training.start_from
    if start is not None:
        trained = load_codec(start)
        if trained.config != recipe.codec:
            raise ConfigError(f"training.start_from: {start} is a codec of another configuration than the recipe's")
        codec.load_state_dict(trained.state_dict())
    if recipe.training.trains == "decoder":
        codec.encoder.requires_grad_(False)
        codec.quantizer.requires_grad_(False)
    return codec
