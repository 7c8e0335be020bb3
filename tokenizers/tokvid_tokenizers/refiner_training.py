"""Training a codec's refiner, from clips and what the codec, which stays as it is, makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tokvid.atomic import atomic_folder
from tokvid.config_checks import at_least, finite
from tokvid.data.clips import ClipArray, DataConfig, SpriteDataConfig
from tokvid.diffusion_head import DiffusionHead, HeadConfig
from tokvid.flow import Refinement
from tokvid.flow_training import FlowTrainer, FlowTrainingConfig, check_one_process
from tokvid.frames import to_model
from tokvid.run_lock import check_output
from tokvid.runtime import default_device, prepare
from tokvid_tokenizers.codec import VideoCodec
from tokvid_tokenizers.refiner import SETS, Refiner, RefinerConfig, Seen
from tokvid_tokenizers.refiner_head import ADAM_NAMES, RefinerHead
from tokvid_tokenizers.registry import load_codec

CODEC_FOLDER = "codec"
_COUNTED = 8192  # patches of a batch that statistics are taken from


@dataclass(frozen=True, kw_only=True)
class RefinerTrainingConfig(FlowTrainingConfig):
    """Of every clip ``frames_a_clip`` frames are seen a step, and of their patches at most ``patches``.

    What was drawn before is the truth and noise of ``given_noise`` times the deviation of each channel: when frames are
    refined it is what the head drew itself, and errors must not add up.
    """

    frames_a_clip: int = 16
    patches: int = 4096
    given_noise: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "frames_a_clip", "patches")
        at_least(self, 0, "given_noise")
        finite(self, "given_noise")


@dataclass(frozen=True, kw_only=True)
class RefinerRecipe:
    """``codec`` is the codec, by folder or name. ``output`` gets ``codec/``, the codec with its refiner, the log,
    checkpoints."""

    task: Literal["refiner"] = "refiner"
    seed: int = 0
    output: str
    codec: str
    data: DataConfig = field(default_factory=SpriteDataConfig)
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    head: HeadConfig = field(default_factory=lambda: HeadConfig(width=112))
    training: RefinerTrainingConfig = field(default_factory=RefinerTrainingConfig)
    refinement: Refinement = field(default_factory=Refinement)


def train_refiner(
    recipe: RefinerRecipe, clips: ClipArray, *, codec: VideoCodec | None = None, resume: bool = False
) -> Refiner:
    """Train a refiner for the codec of ``recipe``; the codec with it is saved in ``<output>/codec``.

    ``codec`` spares loading ``recipe.codec``. Raises :class:`TrainingError` at a step whose loss is not finite, and
    ``KeyboardInterrupt`` with one line for the user after Ctrl-C, when a checkpoint has been written.
    """
    output = Path(recipe.output)
    check_output(output, resume=resume)
    prepare(recipe.seed)
    check_one_process()
    codec = codec or load_codec(recipe.codec, device=default_device())
    untrained = Refiner(codec, recipe.refiner, None, recipe.refinement)
    trained = untrained
    trainer = FlowTrainer(
        recipe,
        clips,
        _Lost(untrained, clips, recipe.training),
        device=next(codec.parameters()).device,
        digests={"codec": codec.codec_id},
        left_out=("codec", "refinement"),
    )

    def keep(head: DiffusionHead) -> None:
        nonlocal trained
        assert isinstance(head, RefinerHead)
        trained = Refiner(codec, recipe.refiner, head, recipe.refinement)
        with atomic_folder(output / CODEC_FOLDER) as beside:
            codec.save_pretrained(beside)
            trained.save(beside)

    trainer.run(resume=resume, keep=keep)
    return trained


@dataclass(frozen=True, kw_only=True)
class _Given:
    """Frames, and which of all their patches the head is ``asked`` for, int64 ``[N]``."""

    seen: Seen
    asked: Tensor


class _Lost:
    """Patches of what decoding loses of clips, and what they are drawn after."""

    adam_names = ADAM_NAMES

    def __init__(self, refiner: Refiner, clips: ClipArray, config: RefinerTrainingConfig) -> None:
        self.refiner, self.clips, self.config = refiner, clips, config

    def new_head(self, config: HeadConfig, mean: Sequence[float], deviation: Sequence[float]) -> RefinerHead:
        return self.refiner.new_head(config, mean, deviation)

    def differences(self, clips: Sequence[int]) -> Tensor:
        frames, plain, _ = self._decoded(clips)
        patches = self.refiner.cut((frames - plain).transpose(1, 2).flatten(0, 1)).flatten(0, 2)
        some = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:_COUNTED]
        return patches[some.to(patches.device)]

    def batch(self, clips: Sequence[int], step: int) -> tuple[_Given, Tensor]:
        refiner, config = self.refiner, self.config
        frames, plain, vectors = self._decoded(clips)
        device, total = frames.device, frames.shape[2]
        count = min(config.frames_a_clip, total)
        chosen = torch.rand(len(clips), total).argsort(dim=1)[:, :count].flatten()
        clip = torch.arange(len(clips)).repeat_interleave(count)
        before = (chosen - 1).clamp_min(0)
        latent = torch.tensor([refiner.latent_of(number) for number in chosen.tolist()])
        phase = torch.tensor([refiner.phase_of(number) for number in chosen.tolist()])
        number = (torch.arange(len(chosen)) + step) % len(SETS)  # of so many frames each

        def patches(of: Tensor, numbers: Tensor) -> Tensor:
            return refiner.cut(of[clip, :, numbers])

        lost = patches(frames - plain, chosen)
        rows, columns = lost.shape[1:3]
        known, next_ones = (
            torch.stack([mask_of(each, rows, columns) for each in range(len(SETS))])[number]
            for mask_of in (refiner.drawn_mask, refiner.set_mask)
        )
        seen = Seen(
            plain=patches(plain, chosen),
            plain_before=patches(plain, before),
            drawn_before=patches(frames - plain, before),
            drawn=lost,
            known=known.to(device),
            vectors=vectors[clip, :, latent],
            phase=phase.to(device),
            number=number.to(device),
        )
        asked = next_ones.flatten().nonzero()[:, 0]
        asked = asked[torch.randperm(len(asked))[: config.patches]].to(device)
        return _Given(seen=seen, asked=asked), lost.flatten(0, 2)[asked]

    def conditions(self, head: DiffusionHead, given: _Given) -> Tensor:
        assert isinstance(head, RefinerHead)
        seen = replace(
            given.seen,
            drawn_before=self._nearly(head, given.seen.drawn_before),
            drawn=self._nearly(head, given.seen.drawn),
        )
        return self.refiner.conditions(head, seen).flatten(0, 2)[given.asked]

    def _nearly(self, head: DiffusionHead, drawn: Tensor) -> Tensor:
        noise = torch.randn(drawn.shape) * torch.tensor(head.config.deviation) * self.config.given_noise
        return drawn + noise.to(drawn)

    def _decoded(self, clips: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Frames of clips and their decodings ``[B,3,T,H,W]``, and the codebook vectors ``[B,D,t,h,w]`` between."""
        codec = self.refiner.codec
        frames = to_model(self.clips.frames[np.asarray(clips)]).to(next(codec.parameters()))
        with torch.no_grad():
            codes = codec.encode(frames)
            plain = codec.decode(codes, frames.shape[2])
            vectors = codec.quantizer.dequantize(codes)
        return frames.float(), plain.float(), vectors.float()
