"""Causal attention for a processor: plain matrix products over blocks of queries, with its own backward.

torch's fused attention in bf16 on a processor spends most of its time in the backward pass; plain products over the
whole square do twice the work that a causal mask leaves. Here each block of queries meets only the keys before its
end. It knows no padding, no window and no dropout: rows must be padded on the right, or not at all.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from tokvid.errors import ModelError

NAME = "tokvid_blocks"
BLOCK = 128
"""Queries at a time: small enough to skip most of what the mask would throw away, large enough for a product."""

_UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "head_mask")


def register() -> str:
    """Make this attention known to transformers, for ``model.set_attn_implementation(name)``; returns its name."""
    AttentionInterface.register(NAME, block_attention_forward)
    AttentionMaskInterface.register(NAME, _no_mask)
    return NAME


def block_attention(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Causal attention of ``[B,heads,S,d]`` tensors of one type and as many keys as queries; softmax in float32."""
    shape = queries.shape
    flat = [tensor.flatten(0, 1) for tensor in (queries, keys, values)]
    result: Tensor = _BlockAttention.apply(*flat, scale)
    return result.view(shape)


def block_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls; answers with ``[B,S,heads,d]``. Under autocast it computes in autocast's type."""
    odd = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if attention_mask is not None or dropout or odd or key.shape[2] != query.shape[2]:
        raise ModelError(
            f"{NAME} attention is causal and nothing else, but {type(module).__name__} asks for"
            f" {odd[0] if odd else 'a mask, dropout or a cache'}; use sdpa"
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    with torch.autocast(device, enabled=False):
        scale = 1.0 / math.sqrt(query.shape[-1]) if scaling is None else scaling
        result = block_attention(query.to(dtype), key.to(dtype), value.to(dtype), scale)
    return result.transpose(1, 2), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


class _BlockAttention(torch.autograd.Function):
    """On ``[B*heads,S,d]``."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        length = queries.shape[1]
        result = torch.empty_like(queries)
        block = min(BLOCK, length)
        above = torch.full((block, block), -torch.inf, dtype=queries.dtype, device=queries.device).triu_(1)
        shares = []
        for start in range(0, length, BLOCK):
            end = min(start + BLOCK, length)
            scores = torch.bmm(queries[:, start:end] * scale, keys[:, :end].transpose(1, 2))
            scores[:, :, start:end] += above[: end - start, : end - start]
            share = torch.softmax(scores, -1)
            torch.bmm(share, values[:, :end], out=result[:, start:end])
            shares.append(share)
        ctx.save_for_backward(queries, keys, values, *shares)
        ctx.scale = scale
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, *shares = ctx.saved_tensors
        grad_queries = torch.empty_like(queries)
        grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
        for number, share in enumerate(shares):
            start, end = number * BLOCK, share.shape[2]
            part = grad[:, start:end]
            grad_values[:, :end].baddbmm_(share.transpose(1, 2), part)
            grad_share = torch.bmm(part, values[:, :end].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_share, share, -1, share.dtype).mul_(ctx.scale)
            torch.bmm(grad_scores, keys[:, :end], out=grad_queries[:, start:end])
            grad_keys[:, :end].baddbmm_(grad_scores.transpose(1, 2), queries[:, start:end])
        return grad_queries, grad_keys, grad_values, None
