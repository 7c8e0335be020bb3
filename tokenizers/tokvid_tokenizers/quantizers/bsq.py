"""Binary spherical quantization (Zhao et al. 2024, arXiv 2406.07548): signs of a latent brought to the unit sphere.

Latents and codes then never lie far from each other, whatever the number of bits, and no channel can grow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from tokvid_tokenizers.quantizers.signs import SignConfig, SignQuantizer


@dataclass(frozen=True, kw_only=True)
class BSQConfig(SignConfig):
    """Codes are the corners of the cube inscribed in the unit sphere; see :class:`SignConfig`."""

    kind: Literal["bsq"] = "bsq"


class BSQuantizer(SignQuantizer):
    """BSQ with one codebook. ``scale`` shrinks the sphere, for the later stages of a residual quantizer."""

    def __init__(self, config: BSQConfig, *, scale: float = 1.0) -> None:
        bits = config.codebook_size.bit_length() - 1
        super().__init__(config, scale=scale / math.sqrt(bits))
        self.radius = scale

    def placed(self, vectors: Tensor) -> Tensor:
        """Vectors ``[N,bits]`` on the sphere."""
        return F.normalize(vectors, dim=1) * self.radius
