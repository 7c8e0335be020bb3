"""The contract of a quantizer: continuous latents in, quantized latents and integer codes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tokvid.errors import ShapeError


@dataclass(frozen=True, kw_only=True)
class QuantizerOutput:
    """What one pass of a quantizer gives."""

    quantized: Tensor
    """``[B,D,t,h,w]``, float32, with gradients passed straight through to the latents."""
    codes: Tensor
    """int64 ``[B,K,t,h,w]`` in ``[0, codebook_size)``."""
    loss: Tensor
    """Scalar auxiliary loss (commitment, entropy, ...); zero where the quantizer has none."""
    stats: dict[str, Tensor] = field(default_factory=dict)
    """Named scalars for the log."""


class Quantizer(nn.Module, ABC):
    """Maps latents ``[B,D,t,h,w]`` to codes and back, each position alone."""

    dim: int
    codebook_size: int
    num_codebooks: int

    @abstractmethod
    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Quantize latents ``[B,D,t,h,w]``."""

    @abstractmethod
    def dequantize(self, codes: Tensor) -> Tensor:
        """Quantized latents ``[B,D,t,h,w]`` of codes ``[B,K,t,h,w]``."""

    @abstractmethod
    def codebook_vectors(self) -> Tensor:
        """The codebook, explicit or implicit: float32 ``[codebook_size, D]`` (of the first codebook)."""

    def check_codes(self, codes: Tensor) -> None:
        """Raise :class:`ShapeError` unless ``codes`` is int64 ``[B,K,t,h,w]`` in range."""
        if codes.ndim != 5 or codes.shape[1] != self.num_codebooks or 0 in codes.shape:
            raise ShapeError(f"expected codes [B,{self.num_codebooks},t,h,w], got {list(codes.shape)}")
        if codes.dtype != torch.int64:
            raise ShapeError(f"expected int64 codes, got {codes.dtype}")
        low, high = (int(v) for v in codes.aminmax())
        if low < 0 or high >= self.codebook_size:
            raise ShapeError(f"codes must lie in [0, {self.codebook_size}), got values from {low} to {high}")
