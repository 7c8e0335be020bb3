"""Training a codec's refiner, from clips and what the codec, which stays as it is, makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tokvid.atomic import atomic_folder
from tokvid.config_checks import at_least, finite
from tokvid.data.clip_source import spread
from tokvid.data.clips import ClipArray, DataConfig, SpriteDataConfig
from tokvid.diffusion_head import DiffusionHead, HeadConfig
from tokvid.flow_training import FlowTrainer, FlowTrainingConfig, check_one_process
from tokvid.frames import to_model
from tokvid.run_lock import check_output
from tokvid.runtime import default_device, prepare
from tokvid_tokenizers.codec import VideoCodec
from tokvid_tokenizers.refiner import FrameRefinement, Refiner, RefinerConfig
from tokvid_tokenizers.refiner_head import ADAM_NAMES, RefinerHead
from tokvid_tokenizers.registry import load_codec

CODEC_FOLDER = "codec"
_COUNTED = 8192  # patches of a batch that statistics are taken from
_SOME = 64  # clips that statistics of frames are taken from
_FLICKER = 0.05  # the least share of what is lost that weights tell apart


@dataclass(frozen=True, kw_only=True)
class RefinerTrainingConfig(FlowTrainingConfig):
    """Of every clip ``frames_a_clip`` frames are seen a step.

    Of a patch of which earlier frames differ by the share m of what decoding loses on average an error counts
    (0.05 + m) ** -``stillness`` times: where nothing moves an error is small, and seen, since it flickers.
    """

    steps: int = 2000
    batch_size: int = 8
    frames_a_clip: int = 8
    stillness: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "frames_a_clip")
        at_least(self, 0, "stillness")
        finite(self, "stillness")


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
    head: HeadConfig = field(default_factory=lambda: HeadConfig(width=96, repeats=1, time_deviation=1.8))
    training: RefinerTrainingConfig = field(default_factory=RefinerTrainingConfig)
    refinement: FrameRefinement = field(default_factory=FrameRefinement)


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
class _Ways:
    """A frame and the earlier ones that are seen with it, and their decodings, in patches
    ``[N,1+earlier,rows,columns,C]``."""

    ends: Tensor
    starts: Tensor


class _Lost:
    """What decoding loses of clips, as ways from decodings to clips."""

    adam_names = ADAM_NAMES

    def __init__(self, refiner: Refiner, clips: ClipArray, config: RefinerTrainingConfig) -> None:
        self.refiner, self.clips, self.config = refiner, clips, config

    def new_head(self, config: HeadConfig, mean: Sequence[float], deviation: Sequence[float]) -> RefinerHead:
        some = to_model(self.clips.frames[np.asarray(spread(len(self.clips), _SOME))])
        patches = self.refiner.cut(some.transpose(1, 2).flatten(0, 1)).flatten(0, 2).double()
        lost = torch.tensor(deviation, dtype=torch.float64)
        varied = (patches.std(0) / lost).tolist()
        return self.refiner.new_head(config, patches.mean(0).tolist(), deviation, varied)

    def differences(self, clips: Sequence[int]) -> Tensor:
        frames, plain = self._decoded(clips)
        patches = self.refiner.cut((frames - plain).transpose(1, 2).flatten(0, 1)).flatten(0, 2)
        some = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:_COUNTED]
        return patches[some.to(patches.device)]

    def batch(self, clips: Sequence[int], step: int) -> tuple[_Ways, Tensor]:
        frames, plain = self._decoded(clips)
        total = frames.shape[2]
        count = min(self.config.frames_a_clip, total)
        chosen = torch.rand(len(clips), total).argsort(dim=1)[:, :count].flatten()
        clip = torch.arange(len(clips)).repeat_interleave(count)[:, None]
        numbers = (chosen[:, None] - torch.tensor([0, *self.refiner.config.before])).clamp_min(0)
        ends, starts = (
            self.refiner.cut(of[clip, :, numbers].flatten(0, 1)).unflatten(0, numbers.shape) for of in (frames, plain)
        )
        return _Ways(ends=ends, starts=starts), ends[:, 0].flatten(0, 2)

    def loss(self, head: DiffusionHead, given: _Ways, drawn: Tensor) -> Tensor:
        assert isinstance(head, RefinerHead)
        ends, starts = (each.repeat(head.config.repeats, 1, 1, 1, 1) for each in (given.ends, given.starts))
        starts = starts + self.refiner.config.noise * torch.randn_like(starts[:, :1])
        times = head.draw_times(len(ends), device=ends.device)
        points = head.standardise(ends + times[:, None, None, None, None] * (starts - ends))
        now, earlier = points[:, 0], points[:, 1:]
        otherwise = (earlier - now[:, None]).permute(0, 2, 3, 1, 4)
        wanted = head.standardise(starts[:, 0]) - head.standardise(ends[:, 0])
        errors = (head.velocity(now, otherwise, times) - wanted).square().mean(3)
        counts = (_FLICKER + otherwise.square().mean((3, 4))) ** -self.config.stillness
        return (counts * errors).sum() / counts.sum()

    def _decoded(self, clips: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Frames of clips and their decodings, ``[B,3,T,H,W]``."""
        codec = self.refiner.codec
        frames = to_model(self.clips.frames[np.asarray(clips)]).to(next(codec.parameters()))
        with torch.no_grad():
            plain = codec.decode(codec.encode(frames), frames.shape[2])
        return frames.float(), plain.float()
