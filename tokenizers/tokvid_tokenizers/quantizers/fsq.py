"""Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505): each latent channel is rounded to a few
levels, and a code is the mixed-radix number of the levels.

The rounding is vector-quantize-pytorch's; this file only brings it under our contract.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from vector_quantize_pytorch import FSQ

from tokvid.errors import ConfigError
from tokvid_tokenizers.quantizers.base import Quantizer, QuantizerOutput

_WIDER = 1e-3  # by how much vector-quantize-pytorch bounds latents wider than the outermost levels


@dataclass(frozen=True, kw_only=True)
class FSQConfig:
    """``levels``: how many values each latent channel may take; their product is the codebook size."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 3:
            raise ConfigError(f"fsq levels must be 3 or more each, got {list(self.levels)}")
        if max(self.levels) > 1000:
            # The bound is a thousandth wider than the levels, which from 1001 on is enough to round one level too far.
            raise ConfigError(f"fsq levels must be at most 1000 each, got {list(self.levels)}")
        if math.prod(self.levels) > 2**24:
            # Codes are summed in float32, which counts exactly only to 2^24.
            raise ConfigError(f"fsq levels {list(self.levels)} give more than 2^24 codes; use fewer or smaller levels")


class FSQuantizer(Quantizer):
    """FSQ with one codebook; latent channels D = number of levels."""

    def __init__(self, config: FSQConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = len(config.levels)
        self.codebook_size = math.prod(config.levels)
        self.num_codebooks = 1
        self.fsq = FSQ(levels=list(config.levels))

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        """Round every channel of latents ``[B,D,t,h,w]`` to its levels."""
        quantized, codes = self.fsq(latents)
        return QuantizerOutput(quantized=quantized, codes=codes.long().unsqueeze(1), loss=latents.new_zeros(()))

    def unrounded(self, latents: Tensor) -> Tensor:
        """Latents bounded as the library bounds them, up to its rounding."""
        levels = torch.tensor(self.config.levels, device=latents.device).view(1, -1, 1, 1, 1)
        half = (levels - 1) * (1 + _WIDER) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        bounded = (latents + (offset / half).atanh()).tanh() * half - offset
        return bounded / (levels // 2)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Quantized latents ``[B,D,t,h,w]`` of codes ``[B,1,t,h,w]``."""
        self.check_codes(codes)
        quantized: Tensor = self.fsq.indices_to_codes(codes[:, 0])
        return quantized

    def codebook_vectors(self, codebook: int = 0) -> Tensor:
        """The implicit codebook, float32 ``[codebook_size, D]``, each channel in [-1, 1]."""
        self.check_codebook(codebook)
        # Computed, not the library's buffer: that one is rounded when the codec is cast to bf16.
        codes = torch.arange(self.codebook_size, device=self.fsq.implicit_codebook.device)
        vectors: Tensor = self.fsq.indices_to_codes(codes)
        return vectors


class ResidualFSQStage(FSQuantizer):
    """One stage of a residual FSQ: what :func:`squash` bounded, less the stages before, on a grid ever finer.

    Here the levels lie symmetrically in [-1, 1], also even ones, times ``levels**-stage``.
    """

    scale: Tensor

    def __init__(self, config: FSQConfig, stage: int) -> None:
        super().__init__(config)
        self.fsq = FSQ(levels=list(config.levels), preserve_symmetry=True, bound_hard_clamp=True)
        self.register_buffer("scale", torch.tensor(config.levels).float().pow(-stage), persistent=False)

    def unrounded(self, latents: Tensor) -> Tensor:
        """Latents as far as this stage's grid reaches."""
        scale = self.scale.view(1, -1, 1, 1, 1)
        return latents.clamp(-scale, scale)

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        """Round latents ``[B,D,t,h,w]`` to this stage's grid."""
        scale = self.scale.view(1, -1, 1, 1, 1)
        quantized, codes = self.fsq(latents / scale)
        return QuantizerOutput(quantized=quantized * scale, codes=codes.long().unsqueeze(1), loss=latents.new_zeros(()))

    def dequantize(self, codes: Tensor) -> Tensor:
        """Quantized latents ``[B,D,t,h,w]`` of codes ``[B,1,t,h,w]``."""
        return super().dequantize(codes) * self.scale.view(1, -1, 1, 1, 1)

    def codebook_vectors(self, codebook: int = 0) -> Tensor:
        """The implicit codebook, float32 ``[codebook_size, D]``."""
        return super().codebook_vectors(codebook) * self.scale


def squash(latents: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Bound latents ``[B,D,t,h,w]`` to a little more than [-1, 1], so that the outermost levels are reached."""
    bound = 1 + 1 / (torch.tensor(levels, device=latents.device).float() - 1)
    bound = bound.view(1, -1, 1, 1, 1)
    return (latents / bound).tanh() * bound
