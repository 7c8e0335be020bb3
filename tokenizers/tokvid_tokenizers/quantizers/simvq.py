"""SimVQ (Zhu et al. 2024, arXiv 2411.02038): the codebook is frozen random rows times one learned matrix.

Every step moves the whole codebook, chosen rows and others alike, so none is left behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokvid.config_checks import at_least, finite
from tokvid_tokenizers.quantizers.base import Quantizer, QuantizerOutput, straight_through, to_latents, to_vectors
from tokvid_tokenizers.quantizers.nearest import nearest


@dataclass(frozen=True, kw_only=True)
class SimVQConfig:
    """``dim``: channels of the latents. ``commitment`` weighs the pull of the latents to their codes."""

    kind: Literal["simvq"] = "simvq"
    codebook_size: int = 1024
    dim: int = 8
    commitment: float = 0.25

    def __post_init__(self) -> None:
        at_least(self, 2, "codebook_size")
        at_least(self, 1, "dim")
        at_least(self, 0, "commitment")
        finite(self, "commitment")


class SimVQuantizer(Quantizer):
    """SimVQ with one codebook."""

    frozen: Tensor

    def __init__(self, config: SimVQConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.codebook_size = config.codebook_size
        self.num_codebooks = 1
        self.register_buffer("frozen", torch.randn(config.codebook_size, config.dim) * config.dim**-0.5)
        self.transform = nn.Linear(config.dim, config.dim, bias=False)

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        """Look latents ``[B,D,t,h,w]`` up."""
        vectors = to_vectors(latents)
        codes = nearest(vectors, self.transform(self.frozen))
        # Only the chosen rows are transformed with a gradient, not the whole codebook.
        chosen = self.transform(F.embedding(codes, self.frozen))
        loss = F.mse_loss(chosen, vectors.detach()) + self.config.commitment * F.mse_loss(vectors, chosen.detach())
        return QuantizerOutput(
            quantized=to_latents(straight_through(vectors, chosen), latents),
            codes=to_latents(codes[:, None], latents),
            loss=loss,
        )

    def dequantize(self, codes: Tensor) -> Tensor:
        """Quantized latents ``[B,D,t,h,w]`` of codes ``[B,1,t,h,w]``."""
        self.check_codes(codes)
        return to_latents(self.transform(F.embedding(to_vectors(codes)[:, 0], self.frozen)), codes)

    def codebook_vectors(self, codebook: int = 0) -> Tensor:
        """The codebook, float32 ``[codebook_size, D]``."""
        self.check_codebook(codebook)
        rows: Tensor = self.transform(self.frozen)
        return rows.float()
