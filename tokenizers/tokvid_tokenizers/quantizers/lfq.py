"""Lookup-free quantization (Yu et al. 2023, arXiv 2310.05737): a code is the signs of the latent's channels.

Nothing pulls the codes apart by itself; the entropy term does (their equation 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokvid_tokenizers.quantizers.signs import SignConfig, SignQuantizer


@dataclass(frozen=True, kw_only=True)
class LFQConfig(SignConfig):
    """Codes are the corners of the cube [-1, 1]^bits; see :class:`SignConfig`."""

    kind: Literal["lfq"] = "lfq"


class LFQuantizer(SignQuantizer):
    """LFQ with one codebook. ``scale`` shrinks the cube, for the later stages of a residual quantizer."""

    def __init__(self, config: LFQConfig, *, scale: float = 1.0) -> None:
        super().__init__(config, scale=scale)
