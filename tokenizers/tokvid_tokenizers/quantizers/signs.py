"""A quantizer whose codes are the signs of its channels, on the cube (LFQ) or on the sphere (BSQ)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokvid.config_checks import at_least, finite, positive
from tokvid.errors import ConfigError
from tokvid_tokenizers.quantizers.base import Quantizer, QuantizerOutput, straight_through, to_latents, to_vectors
from tokvid_tokenizers.quantizers.bits import bits_to_codes, codes_to_signs, entropies


@dataclass(frozen=True, kw_only=True)
class SignConfig:
    """``dim``: channels of the latents, projected to log2(codebook_size) bits where it differs; None: one a bit.

    The auxiliary loss is ``entropy * (H(one) - diversity * H(mean)) + commitment * |latent - code|^2``: the soft
    assignment of one latent is to be sure, the mean one of a batch is to be spread. ``inverse_temperature`` multiplies
    squared distances in the soft assignment. Up to ``group_bits`` bits H(mean) is exact, at a cost of 2^bits numbers;
    more bits are taken in groups.
    """

    codebook_size: int = 1024
    dim: int | None = None
    entropy: float = 0.1
    diversity: float = 1.0
    commitment: float = 0.25
    inverse_temperature: float = 1.0
    group_bits: int = 18

    def __post_init__(self) -> None:
        size = self.codebook_size
        if not 2 <= size <= 2**30 or size & (size - 1):
            raise ConfigError(f"codebook_size must be a power of two from 2 to 2^30, got {size}")
        if self.dim is not None and self.dim < 1:
            raise ConfigError(f"dim must be at least 1, got {self.dim}; leave it out for one channel a bit")
        at_least(self, 0, "entropy", "diversity", "commitment")
        positive(self, "inverse_temperature")
        finite(self, "entropy", "diversity", "commitment", "inverse_temperature")
        if not 1 <= self.group_bits <= 22:
            raise ConfigError(f"group_bits must lie in [1, 22] (2^bits probabilities are held), got {self.group_bits}")


class SignQuantizer(Quantizer):
    """Codes are signs; every channel of a code has the size ``scale``."""

    def __init__(self, config: SignConfig, *, scale: float) -> None:
        super().__init__()
        self.config = config
        self.scale = scale
        self.bits = config.codebook_size.bit_length() - 1
        self.dim = config.dim or self.bits
        self.codebook_size = config.codebook_size
        self.num_codebooks = 1
        self.project_in = nn.Linear(self.dim, self.bits) if self.dim != self.bits else nn.Identity()
        self.project_out = nn.Linear(self.bits, self.dim) if self.dim != self.bits else nn.Identity()

    def placed(self, vectors: Tensor) -> Tensor:
        """Vectors ``[N,bits]`` where the codes are: unchanged, unless the codes lie on a sphere."""
        return vectors

    def unrounded(self, latents: Tensor) -> Tensor:
        """Latents through both projections, and on the sphere where the codes are."""
        return to_latents(self.project_out(self.placed(self.project_in(to_vectors(latents)))), latents)

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        """Take the signs of latents ``[B,D,t,h,w]``."""
        vectors = self.placed(self.project_in(to_vectors(latents)))
        signs = vectors > 0
        chosen = (signs.float() * 2 - 1) * self.scale
        stats: dict[str, Tensor] = {}
        loss = self.config.commitment * F.mse_loss(vectors, chosen)
        if self.training and self.config.entropy:
            # |x - s|^2 and |x + s|^2 differ by 4 s x.
            logits = vectors * (4 * self.scale * self.config.inverse_temperature)
            one, mean = entropies(logits, self.config.group_bits)
            loss = loss + self.config.entropy * (one - self.config.diversity * mean)
            stats = {"entropy_of_one": one.detach(), "entropy_of_mean": mean.detach()}
        return QuantizerOutput(
            quantized=to_latents(self.project_out(straight_through(vectors, chosen)), latents),
            codes=to_latents(bits_to_codes(signs)[:, None], latents),
            loss=loss,
            stats=stats,
        )

    def dequantize(self, codes: Tensor) -> Tensor:
        """Quantized latents ``[B,D,t,h,w]`` of codes ``[B,1,t,h,w]``."""
        self.check_codes(codes)
        return to_latents(self._vectors(to_vectors(codes)[:, 0]), codes)

    def codebook_vectors(self, codebook: int = 0) -> Tensor:
        """The implicit codebook, float32 ``[codebook_size, D]``."""
        self.check_codebook(codebook)
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        return self._vectors(torch.arange(self.codebook_size, device=device)).float()

    def _vectors(self, codes: Tensor) -> Tensor:
        vectors: Tensor = self.project_out(codes_to_signs(codes, self.bits) * self.scale)
        return vectors
