"""The contract of a quantizer: continuous latents in, quantized latents and integer codes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tokvid.errors import ModelError, ShapeError


@dataclass(frozen=True, kw_only=True)
class QuantizerOutput:
    """What one pass of a quantizer gives."""

    quantized: Tensor
    """``[B,D,t,h,w]``, float32, with gradients passed straight through to the latents."""
    codes: Tensor
    """int64 ``[B,K,t,h,w]`` in ``[0, codebook_size)``."""
    loss: Tensor
    """Scalar auxiliary loss (commitment, entropy, ...), weighted; zero where the quantizer has none."""
    stats: dict[str, Tensor] = field(default_factory=dict)
    """Named scalars for the log."""


class Quantizer(nn.Module, ABC):
    """Maps latents ``[B,D,t,h,w]`` to codes and back, each position alone."""

    dim: int
    codebook_size: int
    num_codebooks: int

    @property
    def encoded_dim(self) -> int:
        """Channels that the encoder gives: D, unless the quantizer wants to know more of a latent."""
        return self.dim

    def latents_of(self, encoded: Tensor) -> Tensor:
        """Latents ``[B,D,t,h,w]`` of what the encoder gives, ``[B,encoded_dim,t,h,w]``."""
        return encoded

    def unrounded(self, latents: Tensor) -> Tensor:
        """What :meth:`quantize` rounds, ``[B,D,t,h,w]`` in the space of the codebook vectors: all that codes lose.

        A decoder takes it as it takes quantized latents, the better the more of it it saw in training.
        """
        return latents

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Quantize latents ``[B,encoded_dim,t,h,w]`` in float32, whatever the precision around it.

        That they are finite is for the caller to see, as a codec and its training do: NaN would become a code.
        """
        if latents.ndim != 5 or latents.shape[1] != self.encoded_dim or 0 in latents.shape:
            raise ShapeError(f"expected latents [B,{self.encoded_dim},t,h,w], got {list(latents.shape)}")
        # In bf16 many rows of a codebook are equally near.
        with torch.autocast(latents.device.type, enabled=False):
            return self.quantize(latents.float())

    @abstractmethod
    def quantize(self, latents: Tensor) -> QuantizerOutput:
        """What :meth:`forward` does, on float32 latents of the right shape."""

    @abstractmethod
    def dequantize(self, codes: Tensor) -> Tensor:
        """Quantized latents ``[B,D,t,h,w]`` of codes ``[B,K,t,h,w]``."""

    @abstractmethod
    def codebook_vectors(self, codebook: int = 0) -> Tensor:
        """One of the K codebooks, explicit or implicit, as the decoder sees it: float32 ``[codebook_size, D]``."""

    def check_codebook(self, codebook: int) -> None:
        """Raise :class:`ModelError` unless there is a codebook of this number."""
        if not 0 <= codebook < self.num_codebooks:
            raise ModelError(f"codebook {codebook} does not exist: there are {self.num_codebooks}, counted from 0")

    def check_codes(self, codes: Tensor) -> None:
        """Raise :class:`ShapeError` unless ``codes`` is int64 ``[B,K,t,h,w]`` in range."""
        if codes.ndim != 5 or codes.shape[1] != self.num_codebooks or 0 in codes.shape:
            raise ShapeError(f"expected codes [B,{self.num_codebooks},t,h,w], got {list(codes.shape)}")
        if codes.dtype != torch.int64:
            raise ShapeError(f"expected int64 codes, got {codes.dtype}")
        low, high = (int(v) for v in codes.aminmax())
        if low < 0 or high >= self.codebook_size:
            raise ShapeError(f"codes must lie in [0, {self.codebook_size}), got values from {low} to {high}")


def to_vectors(latents: Tensor) -> Tensor:
    """``[B,D,t,h,w]`` -> ``[B*t*h*w, D]``, positions in raster order."""
    return latents.movedim(1, -1).flatten(0, 3)


def to_latents(vectors: Tensor, like: Tensor) -> Tensor:
    """``[B*t*h*w, D]`` -> ``[B,D,t,h,w]`` on the grid of ``like`` ``[B,*,t,h,w]``; undoes :func:`to_vectors`."""
    batch, _, t, height, width = like.shape
    latents: Tensor = vectors.unflatten(0, (batch, t, height, width)).movedim(-1, 1)
    return latents


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """The values of ``quantized``; gradients go to ``latents`` as if nothing had been rounded (Bengio et al. 2013)."""
    # In this order the values are exactly those of quantized, hence exactly what dequantize gives.
    return quantized.detach() + (latents - latents.detach())
