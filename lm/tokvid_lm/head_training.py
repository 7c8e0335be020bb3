"""Training the diffusion head of a video language model, which stays as it is, and so does its codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tokvid.config import to_mapping
from tokvid.config_checks import is_share
from tokvid.data.clips import ClipArray, DataConfig, SpriteDataConfig
from tokvid.diffusion_head import FROM_AND_TO_LATENTS, DiffusionHead, DiffusionHeadConfig, HeadConfig
from tokvid.errors import ModelError
from tokvid.flow import Refinement
from tokvid.flow_training import FlowTrainer, FlowTrainingConfig, check_one_process
from tokvid.frames import to_model
from tokvid.run_lock import check_output
from tokvid.runtime import default_device, loading_dtype, prepare
from tokvid.weights import digest_of_weights
from tokvid_lm.head import hidden_size
from tokvid_lm.hybrid import check_no_actions, conditions, finished
from tokvid_lm.samplers.runner import sampling_from
from tokvid_lm.segments import TextSegment
from tokvid_lm.templates import VideoHeader
from tokvid_lm.video_lm import VideoLM

LM_FOLDER = "lm"


@dataclass(frozen=True, kw_only=True)
class HeadTrainingConfig(FlowTrainingConfig):
    """``prompt_drop`` of the clips lose their caption, for a model that draws without one, too."""

    prompt_drop: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
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
    check_one_process()
    lm = lm or VideoLM.from_pretrained(recipe.lm, dtype=loading_dtype()).to(default_device())
    lm.sampling_for(None)  # says so where the model draws no videos
    if lm.is_continuous:
        raise ModelError(
            "this model draws its latents with a head that is trained with it: use a recipe of the task lm, with"
            " model: {kind: trained, name: ...}"
        )
    check_no_actions(lm)
    lm.settings.check_clips(clips.fps, clips.frames.shape[1:4])
    trainer = FlowTrainer(
        recipe,
        clips,
        _Differences(lm, clips, recipe.training.prompt_drop),
        device=lm.model.device,
        digests={"model": digest_of_weights(lm.model.state_dict()), "codec": lm.codec.codec_id},
        left_out=("lm", "refinement"),
    )

    def keep(head: DiffusionHead) -> None:
        lm.diffusion_head, lm.refinement = head, recipe.refinement
        lm.save_pretrained(output / LM_FOLDER)

    trainer.run(resume=resume, keep=keep)
    return lm


class _Differences:
    """Of every cell of clips what its code lost of the latent, and what the model says of it."""

    adam_names = FROM_AND_TO_LATENTS

    def __init__(self, lm: VideoLM, clips: ClipArray, prompt_drop: float) -> None:
        self.lm, self.clips, self.prompt_drop = lm, clips, prompt_drop
        self.modes = [sampling.mode for sampling in lm.settings.sampling]
        self.condition_dim = lm.codec.quantizer.dim + hidden_size(lm.model)

    def new_head(self, config: HeadConfig, mean: Sequence[float], deviation: Sequence[float]) -> DiffusionHead:
        return DiffusionHead(
            DiffusionHeadConfig(
                condition_dim=self.condition_dim, mean=tuple(mean), deviation=tuple(deviation), **to_mapping(config)
            )
        )

    def differences(self, clips: Sequence[int]) -> Tensor:
        return self._coded(clips)[1]

    def batch(self, clips: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
        lm, mode = self.lm, self.modes[step % len(self.modes)]
        codes, difference = self._coded(clips)
        grid = lm.codec.grid_for(*self.clips.frames.shape[1:4])
        header = VideoHeader(grid=grid, mode=mode, fps=self.clips.fps)
        dropped = torch.rand(len(clips)) < self.prompt_drop
        documents = [
            finished(lm, [] if drop else [TextSegment(self.clips.captions[number])], code, header)
            for number, code, drop in zip(clips, codes.cpu(), dropped.tolist(), strict=True)
        ]
        with sampling_from(lm.model, None):
            given = conditions(lm, documents, codes)
        return given.flatten(0, 3).clone(), difference

    def loss(self, head: DiffusionHead, given: Tensor, drawn: Tensor) -> Tensor:
        return head.loss(drawn, given)

    def _coded(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Codes ``[B,K,t,h,w]`` of clips, and what they lost of the latents, ``[N,D]``."""
        codec = self.lm.codec
        frames = to_model(self.clips.frames[np.asarray(numbers)]).to(self.lm.model.device)
        with torch.no_grad():
            codes = codec.encode(frames)
            lost = codec.unrounded_latents(frames) - codec.quantizer.dequantize(codes).float()
        return codes, lost.permute(0, 2, 3, 4, 1).flatten(0, 3)
