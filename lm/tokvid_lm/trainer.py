"""``transformers.Trainer`` with our checkpoints, our log and our manners: it stops at NaN, and saves before it stops.

It knows batches and losses, nothing of clips, captions or recipes.

A checkpoint is safetensors and JSON: the model and the Trainer's counters as the Trainer writes them, the rest by
:mod:`tokvid.state_tree`. It is put back by callbacks, so that no private step of the Trainer is replaced by ours. Under
DeepSpeed the states of optimizer and schedule are DeepSpeed's own pickled files, cut up as its ranks hold them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tokvid.across_processes import any_process, sum_over_processes
from tokvid.checkpoint import (
    atomic_folder,
    keep_last,
    random_state,
    read_state,
    restore_random_state,
    seal,
    step_folder,
    write_state,
)
from tokvid.errors import CheckpointError, ModelError, TrainingError
from tokvid.interruption import deferred_interrupt
from tokvid.report.pictures import Picture
from tokvid.training_log import TrainingLog, check_finite
from tokvid.weights import check_weights
from tokvid_lm.loss_parts import LossParts, in_words
from tokvid_lm.training_config import LMTrainingConfig

FACTS_FILE = "run.json"
_SCRATCH = "checkpoint.tmp"
_TRAINERS_ARGUMENTS = "training_args.bin"  # pickled, and read by nobody: the recipe is in FACTS_FILE
_PLAIN = (".safetensors", ".json")
_PARTS = ("nats", "count")


class LMTrainer(Trainer):
    """The model's forward must be a :class:`~tokvid_lm.objectives.video_objective.VideoObjective`.

    ``optimizer`` and ``schedule`` are those of the run, ``output`` is its folder. ``log`` is that of the main process,
    None in all others. ``validate(trainer)`` gives nats a label by what is drawn, and ``draw(autocast)`` a picture of
    what the model draws, on the main process. Of a ``continuous`` model the losses of videos are no bits. ``facts``
    goes into every checkpoint as :data:`FACTS_FILE`.
    """

    def __init__(
        self,
        *,
        config: LMTrainingConfig,
        optimizer: Optimizer,
        schedule: LambdaLR,
        output: Path,
        log: TrainingLog | None,
        facts: Mapping[str, Any],
        validate: Callable[[LMTrainer], dict[str, float]],
        draw: Callable[[torch.dtype | None], Picture | None] | None = None,
        continuous: bool = False,
        **trainer: Any,
    ) -> None:
        self.run_config = config
        self._of_the_run = (optimizer, schedule)
        self.output = output
        self.run_log = log
        self.run_facts = facts
        self.validate = validate
        self.draw = draw
        self.continuous = continuous
        self.interrupted: Callable[[], bool] = lambda: False
        self._parts: dict[str, Tensor] = {}
        self._loss = torch.zeros(())
        self._passes = 0  # of this step, so far
        self._resumed: dict[str, Any] | None = None
        model: PreTrainedModel = trainer["model"]
        use_cache = model.config.use_cache
        super().__init__(**trainer, callbacks=[_Duties(self)])
        # The Trainer switches the cache off in the configuration, which would be saved with the model.
        model.config.use_cache = use_cache
        self.remove_callback(PrinterCallback)
        # Our loss is normalised by the number of labels in all the passes of a step.
        self.model_accepts_loss_kwargs = True
        # Ours stand where they are asked for: none is cut off at the beginning of a row when they are counted.
        self._loss_shifts_labels = False
        self.loss_is_scaled_for_ga = True

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """What the forward pass computes in."""
        return torch.bfloat16 if self.args.bf16 else None

    def run(self, checkpoint: Path | None) -> None:
        """Train to the last step; Ctrl-C or SIGTERM finishes the step, saves, and raises KeyboardInterrupt in one line.

        A second one stops at once. Raises CheckpointError for a ``checkpoint`` that holds something else than
        safetensors and JSON.
        """
        if checkpoint is not None and not self.is_deepspeed_enabled:
            self._resumed = _read_training_state(checkpoint)
        with deferred_interrupt() as self.interrupted:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if self.is_stopping():
            step = self.state.global_step
            raise KeyboardInterrupt(
                f"stopped at step {step}; {step_folder(self.output, step)} is saved, add --resume to go on"
            )

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """That of the run. Given to the Trainer as ``optimizers`` it would be dropped for an AdamW under DeepSpeed."""
        self.optimizer = self._of_the_run[0]
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LambdaLR:
        """That of the run, which moves the rates of its optimizer also where DeepSpeed has wrapped that."""
        _, self.lr_scheduler = self._of_the_run
        return self.lr_scheduler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of one forward pass; what the log wants is added up until the step ends."""
        if self.continuous:
            self._seed_noise()
        output = model(**inputs, num_items=num_items_in_batch)
        loss = output["loss"]
        check_finite(self.state.global_step + 1, {"loss": loss.detach()})
        self._loss = self._loss.to(loss.device) + loss.detach()
        for name in _PARTS:
            self._parts[name] = self._parts[name] + output[name] if name in self._parts else output[name]
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # Gradients are averaged over devices, but the loss was divided by the labels of all of them.
            loss = loss * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss

    def get_batch_samples(self, *arguments: Any, **named: Any) -> Any:
        """The batches of a step; the time that it takes is waiting for data."""
        with nullcontext() if self.run_log is None else self.run_log.waiting():
            return super().get_batch_samples(*arguments, **named)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """What the Trainer clips by, and in no other place says: a step of what is not finite is not taken."""
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        if norm is not None:
            check_finite(self.state.global_step + 1, {"gradient norm": norm})
        return norm

    def check_step(self) -> None:
        """Raise TrainingError where DeepSpeed met gradients that are not finite, of which it says nothing.

        It leaves the step out or, in ZeRO 0 with float32, takes it.
        """
        if not self.is_deepspeed_enabled:
            return
        engine: Any = self.model_wrapped
        step = self.state.global_step
        if engine.skipped_steps:
            check_finite(step, {"gradient norm": float("nan")})
        if engine.get_global_grad_norm() is None:
            check_weights(step, dict(self.accelerator.unwrap_model(engine).named_parameters()))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: it would walk over all modules at every step."""
        return 0

    def is_stopping(self) -> bool:
        """Whether a process has been asked to stop; all ask together, and stop at the same step."""
        return any_process(self.interrupted(), self.args.device)

    def take_parts(self) -> LossParts:
        """What the losses of all passes since the last call were made of, in all processes."""
        nats, count = (sum_over_processes(self._parts[name]).tolist() for name in ("nats", "count"))
        parts = LossParts(nats, count, continuous=self.continuous)
        self._parts = {}
        return parts

    def take_loss(self) -> float:
        """The loss of the step that ended: the sum of all its passes', each divided by the labels of all of them."""
        loss, self._loss = sum_over_processes(self._loss), torch.zeros(())
        self._passes = 0
        return float(loss)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Of tied weights a checkpoint holds one; what is missing or unknown besides is an error, not a warning."""
        there = self.model.state_dict()  # type: ignore[union-attr]
        loaded = {tensor.data_ptr() for name, tensor in there.items() if name not in load_result.missing_keys}
        missing = [name for name in load_result.missing_keys if there[name].data_ptr() not in loaded]
        for names, word in ((missing, "lacks"), (load_result.unexpected_keys, "holds unknown")):
            if names:
                raise CheckpointError(f"the checkpoint {word} {names[0]}: it is of another model or damaged")

    def show_samples(self) -> None:
        """Put a picture of what the model draws so far on the boards; on the main process, if it is to draw."""
        if self.run_log is None or self.draw is None:
            return
        picture = self.draw(self.autocast_dtype)
        if picture is not None:
            self.run_log.pictures("held-out clips and drawings", picture, self.state.global_step)

    def restore_optimizer(self) -> None:
        """Put the states of optimizer and schedule back, once the Trainer has made both; nothing in a new run."""
        if self._resumed is not None:
            assert self.optimizer is not None and self.lr_scheduler is not None
            self.optimizer.load_state_dict(self._resumed.pop("optimizer"))
            self.lr_scheduler.load_state_dict(self._resumed.pop("schedule"))

    def restore_random(self) -> None:
        """Put the random generators back, once the batches of the first step are drawn; nothing in later steps."""
        if self._resumed is not None:
            # Of more processes than wrote it some have the generators of others; what they draw is dropout alone.
            states = self._resumed["random"]
            restore_random_state(states[self.args.process_index % len(states)])
            self._resumed = None

    def _seed_noise(self) -> None:
        """What a head draws in a pass is a function of its step and its number in it, in however many processes."""
        number = self._passes * self.args.world_size + self.args.process_index
        entropy = [self.args.seed, self.state.global_step, number]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        self._passes += 1

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The Trainer's files and our states, under ``step-000123``, whole or not at all, sealed with a digest."""
        step = self.state.global_step
        if self.args.should_save or self.is_deepspeed_enabled:
            # Of a parameter that ZeRO 3 has cut up each process looks at its part.
            plain = self.accelerator.unwrap_model(model)
            parts = {
                name: weight.ds_tensor for name, weight in plain.named_parameters() if hasattr(weight, "ds_tensor")
            }
            check_weights(step, plain.state_dict() | parts)
        scratch = self.output / _SCRATCH
        if self.args.should_save:
            shutil.rmtree(scratch, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.args.output_dir = str(scratch)
        try:
            super()._save_checkpoint(model, trial)
            random_states = gather_object([random_state()])
            if self.args.should_save:
                with atomic_folder(step_folder(self.output, step)) as beside:
                    for path in (scratch / f"checkpoint-{step}").iterdir():
                        path.rename(beside / path.name)
                    (beside / _TRAINERS_ARGUMENTS).unlink(missing_ok=True)
                    if not self.is_deepspeed_enabled:
                        write_state(beside, {}, self._training_state(random_states))
                    facts = {**self.run_facts, "processes": self.args.world_size}
                    (beside / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
                    seal(beside)
                keep_last(self.output, self.run_config.keep_checkpoints)
            self.accelerator.wait_for_everyone()
        finally:
            self.args.output_dir = str(self.output)
            if self.args.should_save:
                shutil.rmtree(scratch, ignore_errors=True)

    def _training_state(self, random_states: list[dict[str, Any]]) -> dict[str, Any]:
        assert self.optimizer is not None and self.lr_scheduler is not None
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.lr_scheduler.state_dict(),
            "random": random_states,
        }


def _read_training_state(checkpoint: Path) -> dict[str, Any]:
    """What :meth:`LMTrainer._training_state` wrote."""
    strange = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.suffix not in _PLAIN]
    if strange:
        raise CheckpointError(
            f"{checkpoint} holds {strange[0].name}, which only unpickling could read, and tokvid reads safetensors and"
            " JSON: remove this checkpoint and resume from another one, or start anew"
        )
    return read_state(checkpoint).state


class _Duties(TrainerCallback):
    """What is due around a step: what a checkpoint held, validation, the log, a checkpoint."""

    def __init__(self, trainer: LMTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Go on where the checkpoint was, before the first step."""
        self.trainer.restore_optimizer()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The Trainer has drawn the batches of this step: the loader has taken from the generators what it takes."""
        self.trainer.restore_random()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Log the step; ask for a checkpoint when it is time or the user wants to stop."""
        trainer, config, step = self.trainer, self.trainer.run_config, state.global_step
        trainer.check_step()
        parts, loss = trainer.take_parts(), trainer.take_loss()
        interrupted = trainer.is_stopping()
        held_out: dict[str, float] = {}
        if step % config.validate_every == 0 and step < config.steps and not interrupted:
            try:
                found = trainer.validate(trainer)
                trainer.show_samples()
            except ModelError as error:
                raise TrainingError(f"step {step}, on held-out clips: {error}; the last checkpoint is whole") from error
            held_out = {
                f"held-out {name}": value for name, value in in_words(found, continuous=trainer.continuous).items()
            }
        if trainer.run_log is not None:
            trainer.run_log.step(
                step,
                {"loss": loss},
                parts.summary() | held_out,
                amount=parts.codes,
                details=parts.by_frame(),
            )
        # The last one too: a finished run that is resumed has nothing left to train, and gives the same model.
        if interrupted or step % config.checkpoint_every == 0 or step >= config.steps:
            control.should_save = True
        if interrupted:
            control.should_training_stop = True
        return control
