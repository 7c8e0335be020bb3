"""Codes that are the signs of channels: the arithmetic that lookup-free quantizers share.

With every corner of a cube of d bits for a codebook, a latent's soft assignment ``softmax(-|x - c|^2 * beta)`` over
the 2^d corners is a product of d independent bits. So its entropy is a sum of d terms, and the mean assignment of N
latents is a product of two matrices ``[2^(d/2), N] @ [N, 2^(d/2)]``: the full 2^18 of MAGVIT-v2 needs neither a table
``[N, 2^18]`` (10 GB for 10,240 latents), nor a sample of the latents, nor an approximation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokvid.across_processes import mean_over_processes

_TINY = 1e-12


def bits_to_codes(bits: Tensor) -> Tensor:
    """Booleans ``[N,d]`` to int64 ``[N]``; the first bit counts most."""
    weights = 2 ** torch.arange(bits.shape[1] - 1, -1, -1, device=bits.device)
    return (bits.long() * weights).sum(1)


def codes_to_signs(codes: Tensor, bits: int) -> Tensor:
    """int64 ``[N]`` to float32 ``[N,d]`` of -1 and 1; the inverse of :func:`bits_to_codes`."""
    shifts = torch.arange(bits - 1, -1, -1, device=codes.device)
    return ((codes[:, None] >> shifts) & 1).float() * 2 - 1


def entropies(logits: Tensor, group_bits: int) -> tuple[Tensor, Tensor]:
    """Of soft bits with ``logits`` ``[N,d]``: the mean entropy of a latent's assignment, and that of the mean one.

    Both in nats. The second is exact up to ``group_bits`` bits; beyond, it is the sum over groups of at most so many
    neighbouring bits, which is never less.
    """
    # H(sigmoid(l)) = softplus(l) - l sigmoid(l), without the logarithm of a small number.
    each = (F.softplus(logits) - logits * logits.sigmoid()).sum(1).mean()
    groups = -(-logits.shape[1] // group_bits)
    parts = [_entropy_of_mean(part) for part in logits.tensor_split(groups, dim=1)]
    return each, torch.stack(parts).sum()


def _entropy_of_mean(logits: Tensor) -> Tensor:
    half = logits.shape[1] // 2
    mean = _corners(logits[:, :half]).T @ _corners(logits[:, half:]) / len(logits)
    mean = mean_over_processes(mean)
    return -(mean * mean.clamp_min(_TINY).log()).sum()


def _corners(logits: Tensor) -> Tensor:
    """Probabilities ``[N,2^d]`` of the corners of the cube of d bits with ``logits`` ``[N,d]``."""
    corners = logits.new_ones(len(logits), 1)
    for bit in logits.sigmoid().unbind(1):
        pair = torch.stack([1 - bit, bit], dim=1)
        corners = (corners[:, :, None] * pair[:, None, :]).flatten(1)
    return corners
