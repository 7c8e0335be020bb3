"""Several codes a cell: each quantizes what the ones before left over (residual), or channels of its own (grouped)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from tokvid.config_checks import at_least
from tokvid.errors import ConfigError
from tokvid_tokenizers.quantizers.base import Quantizer, QuantizerOutput, straight_through
from tokvid_tokenizers.quantizers.bsq import BSQConfig, BSQuantizer
from tokvid_tokenizers.quantizers.fsq import FSQConfig, FSQuantizer, ResidualFSQStage, squash
from tokvid_tokenizers.quantizers.lfq import LFQConfig, LFQuantizer
from tokvid_tokenizers.quantizers.simvq import SimVQConfig, SimVQuantizer
from tokvid_tokenizers.quantizers.vq import VectorQuantizer, VQConfig

SingleConfig = VQConfig | SimVQConfig | LFQConfig | BSQConfig | FSQConfig
"""The quantizers of one code a cell."""


@dataclass(frozen=True, kw_only=True)
class ResidualConfig:
    """``depth`` stages of ``quantizer``, each on what the stages before left over (SoundStream, Zeghidour et al.
    2021, arXiv 2107.03312). Signs and levels halve or refine their grid at each stage; see the code of each."""

    kind: Literal["residual"] = "residual"
    depth: int = 4
    quantizer: SingleConfig = field(default_factory=VQConfig)

    def __post_init__(self) -> None:
        at_least(self, 1, "depth")
        match self.quantizer:
            case VQConfig(dim=dim, codebook_dim=inner):
                projects = inner not in (None, dim)
            case LFQConfig(dim=dim) | BSQConfig(dim=dim):
                projects = dim not in (None, self.quantizer.codebook_size.bit_length() - 1)
            case _:
                projects = False
        if projects:
            raise ConfigError(
                "the stages of a residual quantizer work in one space: give its quantizer no projection (codebook_dim"
                " or dim)"
            )


@dataclass(frozen=True, kw_only=True)
class GroupedConfig:
    """``groups`` of ``quantizer``, each on its own slice of the channels: D is ``groups`` times that of one."""

    kind: Literal["grouped"] = "grouped"
    groups: int = 2
    quantizer: SingleConfig = field(default_factory=VQConfig)

    def __post_init__(self) -> None:
        at_least(self, 1, "groups")


class ResidualQuantizer(Quantizer):
    """K stages; what they give is the sum of theirs."""

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        self.config = config
        stages = [_stage(config.quantizer, number) for number in range(config.depth)]
        self.stages = nn.ModuleList(stages)
        self.dim = stages[0].dim
        self.codebook_size = stages[0].codebook_size
        self.num_codebooks = config.depth

    def unrounded(self, latents: Tensor) -> Tensor:
        """Latents, bounded where the first stage has levels."""
        stage = self.config.quantizer
        return squash(latents, stage.levels) if isinstance(stage, FSQConfig) else latents

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        """Quantize latents ``[B,D,t,h,w]`` stage by stage."""
        latents = self.unrounded(latents)
        rest, total, outputs = latents, torch.zeros_like(latents), []
        for stage in self.stages:
            output = stage(rest)
            rest = rest - output.quantized.detach()
            total = total + output.quantized.detach()
            outputs.append(output)
        return QuantizerOutput(
            quantized=straight_through(latents, total),
            codes=torch.cat([output.codes for output in outputs], dim=1),
            loss=torch.stack([output.loss for output in outputs]).mean(),
            stats=_mean_stats(outputs),
        )

    def dequantize(self, codes: Tensor) -> Tensor:
        """Quantized latents ``[B,D,t,h,w]`` of codes ``[B,K,t,h,w]``."""
        self.check_codes(codes)
        total = codes.new_zeros((), dtype=torch.float32)
        for stage, part in zip(self.stages, codes.split(1, dim=1), strict=True):
            # In the order of quantize, so that the sums agree to the last bit.
            total = total + stage.dequantize(part)  # type: ignore[operator]
        return total

    def codebook_vectors(self, codebook: int = 0) -> Tensor:
        """The codebook of one stage, float32 ``[codebook_size, D]``."""
        self.check_codebook(codebook)
        return self.stages[codebook].codebook_vectors()  # type: ignore[operator,no-any-return]


class GroupedQuantizer(Quantizer):
    """K groups of channels, each with a quantizer of its own."""

    def __init__(self, config: GroupedConfig) -> None:
        super().__init__()
        self.config = config
        groups = [build_single(config.quantizer) for _ in range(config.groups)]
        self.groups = nn.ModuleList(groups)
        self.dim = config.groups * groups[0].dim
        self.codebook_size = groups[0].codebook_size
        self.num_codebooks = config.groups

    def unrounded(self, latents: Tensor) -> Tensor:
        """That of each group's channels."""
        slices = latents.chunk(self.num_codebooks, dim=1)
        return torch.cat([g.unrounded(part) for g, part in zip(self.groups, slices, strict=True)], dim=1)  # type: ignore[operator]

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        """Quantize each group of channels of latents ``[B,D,t,h,w]``."""
        slices = latents.chunk(self.num_codebooks, dim=1)
        outputs = [group(part) for group, part in zip(self.groups, slices, strict=True)]
        return QuantizerOutput(
            quantized=torch.cat([output.quantized for output in outputs], dim=1),
            codes=torch.cat([output.codes for output in outputs], dim=1),
            loss=torch.stack([output.loss for output in outputs]).mean(),
            stats=_mean_stats(outputs),
        )

    def dequantize(self, codes: Tensor) -> Tensor:
        """Quantized latents ``[B,D,t,h,w]`` of codes ``[B,K,t,h,w]``."""
        self.check_codes(codes)
        parts = codes.split(1, dim=1)
        return torch.cat([g.dequantize(part) for g, part in zip(self.groups, parts, strict=True)], dim=1)  # type: ignore[operator]

    def codebook_vectors(self, codebook: int = 0) -> Tensor:
        """The codebook of one group, float32 ``[codebook_size, D]``: zero in the channels of the other groups."""
        self.check_codebook(codebook)
        own = self.groups[codebook].codebook_vectors()  # type: ignore[operator]
        width = self.dim // self.num_codebooks
        vectors: Tensor = nn.functional.pad(own, (codebook * width, self.dim - (codebook + 1) * width))
        return vectors


def build_single(config: SingleConfig) -> Quantizer:
    """The quantizer of one code a cell that ``config`` describes."""
    match config:
        case VQConfig():
            return VectorQuantizer(config)
        case SimVQConfig():
            return SimVQuantizer(config)
        case LFQConfig():
            return LFQuantizer(config)
        case BSQConfig():
            return BSQuantizer(config)
        case FSQConfig():
            return FSQuantizer(config)


def _stage(config: SingleConfig, number: int) -> Quantizer:
    """Stage ``number`` of a residual quantizer; a learned codebook finds its own size, the others must be told."""
    match config:
        case LFQConfig():
            return LFQuantizer(config, scale=2.0**-number)
        case BSQConfig():
            return BSQuantizer(config, scale=2.0**-number)
        case FSQConfig():
            return ResidualFSQStage(config, number)
        case _:
            return build_single(config)


def _mean_stats(outputs: list[QuantizerOutput]) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for output in outputs:
        for name, value in output.stats.items():
            parts[name].append(value.float())
    return {name: torch.stack(values).mean() for name, values in parts.items()}
