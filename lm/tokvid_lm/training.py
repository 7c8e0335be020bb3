"""Training a video language model with ``transformers.Trainer``: what is learned from, with which settings, and saved.

The Trainer itself, its checkpoints and its log are in :mod:`tokvid_lm.trainer`. A run is a function of its recipe:
interrupted and resumed it ends with the same weights as one that never stopped (same machine, same threads).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PreTrainedModel,
    TrainingArguments,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import logging as transformers_logging

from tokvid.across_processes import any_process, found_by_the_first, joined_processes
from tokvid.atomic import write_text
from tokvid.checkpoint import check_unused
from tokvid.config import to_mapping
from tokvid.data.clip import Split
from tokvid.data.clips import ClipArray, ClipSource
from tokvid.data.dialogues import open_dialogues
from tokvid.deepspeed_config import check_agreement, expect_its_accelerator, read_deepspeed, zero_stage
from tokvid.errors import ConfigError
from tokvid.grid import latent_frames
from tokvid.optimizer import build_optimizer, warmup_then_linear
from tokvid.processes import is_main_process, world_size
from tokvid.run_lock import check_output, only_run
from tokvid.runtime import computes_in_bf16, default_device, prepare
from tokvid.training_log import TrainingLog, check_finite
from tokvid.weights import check_weights
from tokvid_lm.adapters import Adapters, trained_adapters
from tokvid_lm.batch_plan import BatchPlan, Stage
from tokvid_lm.building import build_lm
from tokvid_lm.chat_documents import ChatDocuments, CodedDialogues, code_dialogues
from tokvid_lm.code_clips import LatentClips, Progress, code_clips
from tokvid_lm.code_source import CodeSource, ShardClips
from tokvid_lm.collate import Collator
from tokvid_lm.continuous import ADAM_NAMES as LATENT_ADAM_NAMES
from tokvid_lm.continuous import LatentHead, is_continuous
from tokvid_lm.documents import Documents
from tokvid_lm.evaluation import CodeLosses, unigram_entropy, validation_losses
from tokvid_lm.gathered import gathered
from tokvid_lm.latent_documents import open_documents
from tokvid_lm.latent_training import give_latent_head, latent_head_in_model
from tokvid_lm.lora import LoRAConfig, insert_adapters, merge_adapters
from tokvid_lm.objectives.video_objective import VideoObjective
from tokvid_lm.resuming import checkpoint_to_resume, read_facts, run_facts
from tokvid_lm.trainer import LMTrainer
from tokvid_lm.training_config import (
    LMRecipe,
    LMTrainingConfig,
    PretrainedModelConfig,
    ShardDataConfig,
)
from tokvid_lm.training_layers import training_layers
from tokvid_lm.training_samples import sample_sheet
from tokvid_lm.video_lm import VideoLM
from tokvid_lm.video_settings import VideoSettings
from tokvid_tokenizers import VideoCodec, load_codec

LM_FOLDER = "lm"
ADAPTERS_FOLDER = "adapters"
RECIPE_FILE = "recipe.json"
_USES_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"  # the Trainer sets it in the environment


@dataclass(frozen=True, kw_only=True)
class TrainedLM:
    """A finished run: the model in evaluation mode, the folder it was saved in, its losses on ``held_out``."""

    lm: VideoLM
    folder: Path
    losses: CodeLosses
    held_out: CodeSource


def train_lm(
    recipe: LMRecipe,
    clips: ClipArray | ClipSource | None = None,
    held_out: ClipArray | ClipSource | None = None,
    *,
    codec: VideoCodec | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> TrainedLM:
    """Encode the clips, build the model, train it, and save the :class:`VideoLM` in ``<output>/lm``.

    Clips are not given where the recipe's data are code shards. ``codec`` spares loading ``recipe.codec``.
    ``progress(done, total)`` follows the encoding. With ``resume`` the run goes on from its newest whole checkpoint,
    if there is one. Of several processes (torchrun) each takes its part of every step, and the first one writes.
    Raises :class:`TrainingError` at a step whose loss is not finite (the last checkpoint stays), and
    ``KeyboardInterrupt`` with one line for the user after Ctrl-C, when a checkpoint has been written.
    """
    check_output(recipe.output, resume=resume)  # before clips are encoded
    prepare(recipe.seed)
    deepspeed_settings(recipe)  # what is wrong there is said before clips are encoded
    codec = load_codec(recipe.codec) if codec is None else codec
    check_codec(recipe, codec)
    if isinstance(recipe.data, ShardDataConfig):
        sources = [ShardClips(recipe.data.path, split, codec_id=codec.codec_id) for split in ("train", "held_out")]
        return train_on_codes(recipe, codec, *sources, resume=resume)
    assert clips is not None and held_out is not None, "clips that are not codes yet must be given"
    num_frames = clips.frames.shape[1] if isinstance(clips, ClipArray) else clips.num_frames
    check_curriculum(recipe.training, latent_frames(num_frames, codec.temporal_stride))
    codec.to(default_device())
    coded = code_clips(codec, clips, progress=progress)
    return train_on_codes(recipe, codec, coded, code_clips(codec, held_out), resume=resume)


def train_on_codes(
    recipe: LMRecipe, codec: VideoCodec, clips: CodeSource, held_out: CodeSource, *, resume: bool = False
) -> TrainedLM:
    """:func:`train_lm` on clips that are codes already."""
    with _transformers_as_it_was():
        return _train_on_codes(recipe, codec, clips, held_out, resume=resume)


def _train_on_codes(
    recipe: LMRecipe, codec: VideoCodec, clips: CodeSource, held_out: CodeSource, *, resume: bool
) -> TrainedLM:
    prepare(recipe.seed)
    check_codec(recipe, codec)
    check_curriculum(recipe.training, clips.latent_frames)
    output = Path(recipe.output)
    check_output(output, resume=resume)
    dialogues = _dialogues(recipe, codec, "train")
    lm = build_lm(recipe, codec, (*clips.captions, *(() if dialogues is None else dialogues.texts())))
    if isinstance(clips, LatentClips):
        give_latent_head(recipe, lm, clips)
    documents = _documents(recipe, lm, clips, dialogues)
    held_out_documents = _documents(recipe, lm, held_out, _dialogues(recipe, codec, "held_out"))
    positions = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
    documents.check_context(positions, pack=recipe.training.pack)
    held_out_documents.check_context(positions)
    with joined_processes(alone=recipe.training.deepspeed is not None), only_run(output, wanted=is_main_process()):
        if not resume:
            check_unused(output)  # that run may have ended while clips were encoded here
        return _run(recipe, lm, documents, held_out_documents, resume=resume)


def _run(
    recipe: LMRecipe, lm: VideoLM, documents: Documents, held_out_documents: Documents, *, resume: bool
) -> TrainedLM:
    """Train, measure and save ``lm``."""
    output, clips, held_out = Path(recipe.output), documents.clips, held_out_documents.clips
    facts = run_facts(recipe, lm.codec, documents)
    checkpoint = checkpoint_to_resume(output, facts) if resume else None
    if checkpoint is None:
        # Where it is measured, processes may measure otherwise.
        bf16 = any_process(computes_in_bf16(recipe.training.precision), default_device())
    else:
        bf16 = read_facts(checkpoint)["bf16"]
    if is_main_process():
        write_text(output / RECIPE_FILE, json.dumps(to_mapping(recipe), indent=2) + "\n")
    lm.settings = _settings(recipe, clips)
    with latent_head_in_model(lm) as latent_head:
        adapters = _train(recipe, lm, documents, held_out_documents, facts | {"bf16": bf16}, checkpoint, latent_head)
    lm.model.eval()
    autocast = torch.bfloat16 if bf16 else None
    losses = CodeLosses(
        validation=validation_losses(
            lm,
            held_out,
            recipe.training.mixture,
            dialogues=held_out_documents.dialogues,
            batch_size=recipe.training.batch_size,
            autocast=autocast,
        ),
        unigram_entropy=None if lm.is_continuous else found_by_the_first(lambda: unigram_entropy(clips)),
    )
    check_finite(recipe.training.steps, {f"held-out nats ({name})": nats for name, nats in losses.validation.items()})
    check_weights(recipe.training.steps, lm.model.state_dict())
    if is_main_process():
        lm.save_pretrained(output / LM_FOLDER)
        if adapters is not None:
            lm.save_pretrained(output / ADAPTERS_FOLDER, adapters=adapters)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # whoever returns finds the folder
    return TrainedLM(lm=lm, folder=output / LM_FOLDER, losses=losses, held_out=held_out)


def check_codec(recipe: LMRecipe, codec: VideoCodec) -> None:
    """Raise :class:`ConfigError` unless a head is asked for where ``codec`` has no codes, and there alone."""
    if is_continuous(codec) and recipe.head is None:
        raise ConfigError(
            f"the codec {recipe.codec} has no codes: set head, {{width: 256}} say, with which its latents are drawn"
        )
    if not is_continuous(codec) and recipe.head is not None:
        raise ConfigError(
            f"head draws the latents of a continuous codec, and {recipe.codec} has codes: leave it out, or train a head"
            " that refines them with a recipe of the task head"
        )
    if is_continuous(codec) and zero_stage(deepspeed_settings(recipe)) == 3:
        raise ConfigError(
            "ZeRO 3 cuts up a head that is no part of the saved model: use stage 2 with a continuous codec"
        )


def check_curriculum(config: LMTrainingConfig, latent_frames: int) -> None:
    """Raise :class:`ConfigError` for a stage that would see more latent frames than the clips have."""
    for number, stage in enumerate(config.curriculum):
        if stage.latent_frames > latent_frames:
            raise ConfigError(
                f"training.curriculum[{number}].latent_frames is {stage.latent_frames}, but the clips have"
                f" {latent_frames} latent frames: lower it, or leave the stage out"
            )


def _dialogues(recipe: LMRecipe, codec: VideoCodec, split: Split) -> CodedDialogues | None:
    if recipe.dialogues is None:
        return None
    return code_dialogues(codec.to(default_device()), open_dialogues(recipe.dialogues, split))


def _documents(recipe: LMRecipe, lm: VideoLM, clips: CodeSource, dialogues: CodedDialogues | None) -> Documents:
    config, passes = recipe.training, _passes(recipe)
    return open_documents(
        lm.processor,
        clips,
        mixture=config.mixture,
        prompt_drop=config.prompt_drop,
        score_text=config.score_text,
        seed=recipe.seed,
        # Each pass of a step, and with it each process, reads shards of its own.
        parts=passes if isinstance(clips, ShardClips) and len(clips) >= passes else 1,
        dialogues=None if dialogues is None else ChatDocuments(lm.processor, dialogues, seed=recipe.seed),
    )


def _settings(recipe: LMRecipe, clips: CodeSource) -> VideoSettings:
    """What the model will be asked for, unless told otherwise."""
    num_frames, height, width = clips.size or (None, None, None)
    return VideoSettings(
        sampling=recipe.sampling,
        num_frames=num_frames,
        height=height,
        width=width,
        fps=clips.fps,
        latent_frames=clips.latent_frames,
        knows_null_prompt=recipe.knows_null_prompt,
        captions=any(entry.objective == "caption" for entry in recipe.training.mixture),
        about=recipe.about,
    )


def _train(
    recipe: LMRecipe,
    lm: VideoLM,
    documents: Documents,
    held_out_documents: Documents,
    facts: dict[str, Any],
    checkpoint: Path | None,
    latent_head: LatentHead | None,
) -> Adapters | None:
    """Train; the adapters, which are merged, too."""
    config, held_out = recipe.training, held_out_documents.clips
    deepspeed = deepspeed_settings(recipe)
    other = checkpoint is not None and read_facts(checkpoint)["processes"] != world_size()
    if other and deepspeed is not None and zero_stage(deepspeed) > 0:
        deepspeed["checkpoint"] = {"load_universal": True}
    arguments = _arguments(recipe, bf16=facts["bf16"], deepspeed=deepspeed)
    lm.to(arguments.device).model.train()
    lora = _lora(recipe)
    if lora is not None:
        insert_adapters(lm.model, lora, first_new_row=lm.vocabulary.text_size, seed=recipe.seed)
    tables = adam_names(lm.model)
    optimizer = build_optimizer(
        config.optimizer,
        lm.model,
        adam_names=[*tables, *(() if latent_head is None else LATENT_ADAM_NAMES)],
        undecayed=() if lora is None else tables,
        undecayed_rate=1.0 if lora is None else lora.rows_rate,
    )
    objective = VideoObjective(
        lm.model,
        lm.vocabulary,
        config.loss,
        mode_weights={entry.mode: entry.weight for entry in config.mixture if entry.draws_video},
        latent_head=latent_head,
    )
    start = 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))
    log = (
        TrainingLog(
            recipe.output, config.steps, "codes/s", start_step=start, title="language model", every=config.log_every
        )
        if is_main_process()
        else None
    )
    draws = config.samples > 0 and lm.settings.sampling and zero_stage(deepspeed) != 3
    with training_layers(recipe.training, lm.model), objective.as_forward():
        trainer = LMTrainer(
            model=lm.model,
            args=arguments,
            train_dataset=_plan(recipe, documents),
            data_collator=Collator(
                documents, pad_id=lm.pad_id, positions=lm.positions, width=config.pack if config.compile else None
            ),
            config=config,
            optimizer=optimizer,
            schedule=LambdaLR(optimizer, lambda step: learning_rate_share(config, step)),
            output=Path(recipe.output),
            log=log,
            facts=facts,
            validate=lambda trainer: validation_losses(
                lm,
                held_out,
                config.mixture,
                dialogues=held_out_documents.dialogues,
                answer=lm.model,
                batch_size=config.batch_size,
                autocast=trainer.autocast_dtype,
            ),
            continuous=latent_head is not None,
            draw=(lambda autocast: sample_sheet(lm, held_out, config.samples, autocast=autocast)) if draws else None,
        )
        with nullcontext() if log is None else log:
            trainer.run(checkpoint)
    if zero_stage(deepspeed) == 3:
        lm.model = gathered(lm.model)
    if lora is None or not isinstance(recipe.model, PretrainedModelConfig):
        return None
    adapters = trained_adapters(lm.model, lora, base=recipe.model.name)
    merge_adapters(lm.model)
    return adapters


def _lora(recipe: LMRecipe) -> LoRAConfig | None:
    return recipe.model.lora if isinstance(recipe.model, PretrainedModelConfig) else None


def _passes(recipe: LMRecipe) -> int:
    """Forward passes of a step, in all processes."""
    return recipe.training.gradient_accumulation * world_size()


def _plan(recipe: LMRecipe, documents: Documents) -> BatchPlan:
    """Every batch of the run, a pass after another: those of the curriculum's stages, then those of whole clips."""
    config, passes = recipe.training, _passes(recipe)
    rest = config.steps - sum(stage.steps for stage in config.curriculum)
    stages = [
        Stage(batches=stage.steps * passes, rows=stage.batch_size, latent_frames=stage.latent_frames)
        for stage in config.curriculum
    ]
    stages.append(Stage(batches=rest * passes, rows=config.batch_size))
    return BatchPlan(stages, pack=config.pack, length=documents.length, seed=recipe.seed, parts=documents.parts)


def adam_names(model: PreTrainedModel) -> list[str]:
    """The parameters that Muon is not for: they map ids or positions, not hidden features, whatever they are called."""
    tables: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    tables += [table for table in (model.get_input_embeddings(), model.get_output_embeddings()) if table is not None]
    ours = {id(parameter) for table in tables for parameter in table.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in ours]


@contextmanager
def _transformers_as_it_was() -> Iterator[None]:
    """Without the bar that transformers shows for every file of weights it writes. At the end it forgets the training's
    DeepSpeed, by which it would load and train whatever comes next."""
    shown, in_use = transformers_logging.is_progress_bar_enabled(), os.environ.get(_USES_DEEPSPEED)
    transformers_logging.disable_progress_bar()
    expect_its_accelerator()
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        if in_use is None:
            os.environ.pop(_USES_DEEPSPEED, None)
        if shown:
            transformers_logging.enable_progress_bar()


def learning_rate_share(config: LMTrainingConfig, step: int) -> float:
    """The share of the learning rate at ``step`` (from 0); zero from the last step on."""
    if step >= config.steps:
        return 0.0
    if config.schedule == "linear" or step < config.warmup_steps:
        return warmup_then_linear(step, warmup_steps=config.warmup_steps, steps=config.steps)
    done = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * done))


def _arguments(recipe: LMRecipe, *, bf16: bool, deepspeed: dict[str, Any] | None) -> TrainingArguments:
    """The Trainer's settings; saving, logging and validation are ours (see :class:`LMTrainer`)."""
    config = recipe.training
    return TrainingArguments(
        output_dir=recipe.output,
        max_steps=config.steps,
        per_device_train_batch_size=1,  # one planned batch: see BatchPlan
        gradient_accumulation_steps=config.gradient_accumulation,
        max_grad_norm=config.gradient_clip,
        train_sampling_strategy="sequential",
        use_cpu=default_device().type == "cpu",
        bf16=bf16,
        seed=recipe.seed,
        deepspeed=deepspeed,
        save_strategy="no",
        # The rest of a checkpoint is written by LMTrainer without pickle; DeepSpeed keeps its own files.
        save_only_model=config.deepspeed is None,
        logging_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_pin_memory=default_device().type == "cuda",
        dataloader_num_workers=config.loading_workers,
    )


def deepspeed_settings(recipe: LMRecipe) -> dict[str, Any] | None:
    """DeepSpeed's settings, which agree with the recipe."""
    config = recipe.training
    settings = read_deepspeed(config.deepspeed)
    if settings is None:
        return None
    if zero_stage(settings) == 3 and (_lora(recipe) is not None or recipe.positions != "1d"):
        raise ConfigError(
            "training.deepspeed: ZeRO 3 is for whole models with positions 1d; with model.lora or other positions use"
            " stage 2, of whose parts adapters are small"
        )
    if settings.get("bf16", {}).get("enabled", "auto") != "auto":
        raise ConfigError('training.deepspeed: write "bf16": {"enabled": "auto"}: training.precision says it')
    # The Trainer hands it one planned batch a pass, whatever the batch holds.
    passes = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": config.gradient_accumulation}
    batches = {"train_batch_size": config.gradient_accumulation * world_size()}
    check_agreement(settings, {"gradient_clipping": config.gradient_clip, **passes, **batches})
    return settings | {"bf16": {"enabled": "auto"}, **passes}  # where the file does not say them
