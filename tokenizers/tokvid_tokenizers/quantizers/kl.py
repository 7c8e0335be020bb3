"""The continuous bottleneck (Kingma and Welling 2013, arXiv 1312.6114; latent diffusion, Rombach et al. 2021, arXiv
2112.10752): every latent is a Gaussian, of which training draws and everything else takes the mean. It has no codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokvid.across_processes import noise_like
from tokvid.config_checks import at_least, finite
from tokvid.errors import ModelError
from tokvid_tokenizers.quantizers.base import Quantizer, QuantizerOutput

_LOG_VARIANCES = (-30.0, 20.0)
"""Beyond, variances are nothing or overflow."""


@dataclass(frozen=True, kw_only=True)
class KLConfig:
    """``dim``: channels of a latent. ``weight``: of the divergence from a standard Gaussian, in nats a cell."""

    kind: Literal["kl"] = "kl"
    dim: int = 16
    weight: float = 1e-6

    def __post_init__(self) -> None:
        at_least(self, 1, "dim")
        at_least(self, 0, "weight")
        finite(self, "weight")


class GaussianBottleneck(Quantizer):
    """A quantizer of no codebooks: K is 0, codes are ``[B,0,t,h,w]``."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.codebook_size = 0
        self.num_codebooks = 0

    @property
    def encoded_dim(self) -> int:
        """Mean and logarithm of the variance of every channel."""
        return 2 * self.dim

    def latents_of(self, encoded: Tensor) -> Tensor:
        """The means ``[B,D,t,h,w]``."""
        return encoded[:, : self.dim]

    def unrounded(self, encoded: Tensor) -> Tensor:
        """The means: nothing is rounded."""
        return self.latents_of(encoded)

    def quantize(self, encoded: Tensor) -> QuantizerOutput:
        """Draw latents in training, else take their means."""
        mean, log_variance = encoded.chunk(2, dim=1)
        log_variance = log_variance.clamp(*_LOG_VARIANCES)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        latents = mean + (log_variance / 2).exp() * noise_like(mean) if self.training else mean
        batch, _, *grid = mean.shape
        return QuantizerOutput(
            quantized=latents,
            codes=torch.empty((batch, 0, *grid), dtype=torch.int64, device=mean.device),
            loss=self.config.weight * divergence,
            stats={"kl": divergence.detach()},
        )

    def dequantize(self, codes: Tensor) -> Tensor:
        """There is nothing to look up: :class:`ModelError`."""
        raise ModelError("a continuous codec has no codes: use encode_latents and decode_latents")

    def codebook_vectors(self, codebook: int = 0) -> Tensor:
        """There is no codebook: :class:`ModelError`."""
        raise ModelError("a continuous codec has no codebook")
