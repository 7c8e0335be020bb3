"""What a codec recipe holds: the data, the codec, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from tokvid.config_checks import at_least, is_average, is_share, less_than, positive
from tokvid.data.clips import DataConfig, SpriteDataConfig
from tokvid.errors import ConfigError
from tokvid.optimizer import MuonConfig, OptimizerConfig
from tokvid.runtime import Precision
from tokvid_tokenizers.codec_config import AnyCodecConfig, CodecConfig
from tokvid_tokenizers.feed import BucketConfig
from tokvid_tokenizers.losses.adversarial import AdversarialConfig
from tokvid_tokenizers.losses.quantizer import QuantizerLossConfig
from tokvid_tokenizers.losses.reconstruction import ReconstructionLossConfig


@dataclass(frozen=True, kw_only=True)
class CodecTrainingConfig:
    """Every schedule counts steps, never minutes.

    Learning rates rise linearly over ``warmup_steps`` and then fall linearly to zero at ``steps``. ``precision: auto``
    takes bf16 where the machine is clearly faster in it. With an ``average_decay`` above 0 (0.999, say) what is
    evaluated and saved is the moving average of the weights. With ``checkpoint_blocks`` the backward pass computes the
    codec's blocks again instead of keeping what happened in them: the same numbers in less memory and more time. With
    ``compile`` torch.compile makes a program of these blocks, in up to a minute at the first step: the same numbers up
    to rounding, on a processor sooner only where blocks are more than convolutions (transformer, factorised).

    ``start_from`` names a trained codec of the same configuration to go on from, with other clips (larger or longer
    ones), another loss, or both. ``trains: decoder`` leaves its codes as they are, though not its digest: the second
    of VidTok's two stages (arXiv 2412.13061).

    Of a random ``unrounded_share`` of the clips the decoder sees the latents before they are rounded to codes (HART,
    Tang et al. 2024, arXiv 2410.10812, takes half), so that it can make use of what a diffusion head adds to codes.

    ``clips: memory`` loads all clips before the first step; ``disk`` reads (or draws) each when its batch comes, on
    ``loading_workers`` threads, for data that do not fit. Only so can there be ``buckets``, of which each step takes
    one: clips of several sizes and lengths, pictures among videos, small and short clips first. ``batch_size`` counts
    the clips of a step over all processes, of which each takes its part. ``deepspeed`` is the path of a DeepSpeed JSON
    (ZeRO 0 to 2); without it torch's DDP joins several processes.
    """

    steps: int = 1000
    batch_size: int = 32
    clips: Literal["memory", "disk"] = "memory"
    loading_workers: int = 4
    buckets: tuple[BucketConfig, ...] = ()
    optimizer: OptimizerConfig = field(default_factory=MuonConfig)
    warmup_steps: int = 50
    gradient_clip: float = 1.0
    precision: Precision = "auto"
    loss: ReconstructionLossConfig = field(default_factory=ReconstructionLossConfig)
    quantizer_loss: QuantizerLossConfig = field(default_factory=QuantizerLossConfig)
    start_from: str | None = None
    trains: Literal["all", "decoder"] = "all"
    unrounded_share: float = 0.0
    adversarial: AdversarialConfig | None = None
    average_decay: float = 0.0
    checkpoint_blocks: bool = False
    compile: bool = False
    deepspeed: str | None = None
    log_every: int = 10
    validate_every: int = 500
    validation_clips: int = 128
    checkpoint_every: int = 500
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size", "log_every", "validate_every", "validation_clips")
        at_least(self, 1, "checkpoint_every", "keep_checkpoints", "loading_workers")
        positive(self, "gradient_clip")
        is_average(self, "average_decay")
        is_share(self, "unrounded_share")
        less_than(self, "warmup_steps", "steps")
        if self.trains == "decoder" and self.start_from is None:
            raise ConfigError("trains: decoder needs start_from: codes that nobody learned would be decoded")
        if self.buckets:
            self._check_buckets()

    def _check_buckets(self) -> None:
        if self.clips != "disk":
            raise ConfigError("buckets need clips: disk, because clips in memory have one size and length")
        for number, bucket in enumerate(self.buckets):
            if bucket.from_step >= self.steps:
                raise ConfigError(f"buckets[{number}] begins at step {bucket.from_step} of {self.steps}, so never")
        # Where none is active, one has just ended or none has begun.
        for step in (0, *(bucket.until_step for bucket in self.buckets if bucket.until_step is not None)):
            if step < self.steps and not any(bucket.is_active(step) for bucket in self.buckets):
                raise ConfigError(f"no bucket is active at step {step}; let another one last or begin there")


@dataclass(frozen=True, kw_only=True)
class CodecRecipe:
    """A complete run; ``output`` is the folder that gets ``codec/``, ``log.jsonl`` and the checkpoints."""

    task: Literal["codec"] = "codec"
    seed: int = 0
    output: str
    data: DataConfig = field(default_factory=SpriteDataConfig)
    codec: AnyCodecConfig = field(default_factory=CodecConfig)
    training: CodecTrainingConfig = field(default_factory=CodecTrainingConfig)

    def __post_init__(self) -> None:
        self._check_discriminator()
        try:
            self.codec.grid_for(self.data.num_frames, *self.data.size)
        except ValueError as error:
            raise ConfigError(f"data.size: {error}") from error
        for number, bucket in enumerate(self.training.buckets):
            try:
                height, width = bucket.size or self.data.size
                num_frames = bucket.num_frames or self.data.num_frames
                self.codec.grid_for(num_frames, height, width)
                replace(self.data, size=(height, width), num_frames=num_frames)  # what the data say of such clips
            except ValueError as error:
                raise ConfigError(f"training.buckets[{number}]: {error}") from error

    def _check_discriminator(self) -> None:
        if self.training.adversarial is None:
            return
        layers = self.training.adversarial.discriminator.layers
        sizes = [bucket.size or self.data.size for bucket in self.training.buckets] or [self.data.size]
        smallest = min(side for size in sizes for side in size)
        if smallest < 2**layers:
            raise ConfigError(
                f"a discriminator of {layers} layers halves pictures as often and wants {2**layers} pixels a side, the"
                f" clips have {smallest}: lower training.adversarial.discriminator.layers"
            )
