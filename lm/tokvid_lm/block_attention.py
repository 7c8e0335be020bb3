"""Attention for training on a processor: plain matrix products over blocks of queries, with its own backward.

torch's fused attention computes the whole square whatever the mask, and in bf16 spends most of its time in the backward
pass. Here each block of queries meets only the keys that one of its queries sees: those before it, or what a
:class:`~tokvid_lm.mask_spec.MaskSpec` says. It knows no dropout and no soft cap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from tokvid.errors import ModelError
from tokvid_lm.mask_spec import BLOCKS, MaskSpec

BLOCK = 128
"""Queries at a time: small enough to skip most of what the mask would throw away, large enough for a product."""

_UNSUPPORTED = ("softcap", "s_aux", "head_mask")


def register() -> str:
    """Make this attention known to transformers, for ``model.set_attn_implementation(name)``; returns its name."""
    AttentionInterface.register(BLOCKS, block_attention_forward)
    AttentionMaskInterface.register(BLOCKS, _no_mask)
    return BLOCKS


@dataclass(frozen=True, eq=False)
class Block:
    """Queries ``[start, stop)`` of row ``row`` of a batch, and the keys that one of them sees.

    ``keys`` int64 ``[n]``; ``hidden`` bool ``[stop - start, n]`` where a query does not see a key, None if all see all.
    """

    row: int
    start: int
    stop: int
    keys: Tensor
    hidden: Tensor | None


def compile_mask(spec: MaskSpec) -> list[Block]:
    """The blocks of a batch, once for all layers and both passes; none reaches over the end of a document or a copy."""
    blocks: list[Block] = []
    for row, document in enumerate(spec.document):
        for first, last in pairwise(_edges(document)):
            alone = spec.part(row, slice(first, last))
            mask = alone.to_bool()[0, 0]
            for start, stop in pairwise(_edges(torch.where(alone.ghost[0], alone.block[0], -1))):
                blocks += _blocks(mask, row, first, start, stop)
    return blocks


def _blocks(mask: Tensor, row: int, first: int, start: int, stop: int) -> Iterator[Block]:
    """Queries ``[start, stop)`` of the document that begins at ``first``, whose bool ``[n,n]`` mask is given."""
    count = -(-(stop - start) // BLOCK)
    edges = [start + (stop - start) * number // count for number in range(count + 1)]  # of nearly one size
    for begin, end in pairwise(edges):
        part = mask[begin:end]
        keys = part.any(0).nonzero().squeeze(1)
        hidden = ~part[:, keys]
        yield Block(row, first + begin, first + end, first + keys, hidden if bool(hidden.any()) else None)


def _edges(values: Tensor) -> list[int]:
    """Where runs of equal ``values`` ``[n]`` begin, and n."""
    changes = (values[1:] != values[:-1]).nonzero().squeeze(1) + 1
    return [0, *changes.tolist(), len(values)]


def block_attention(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float, blocks: Sequence[Block] | None = None
) -> Tensor:
    """Attention of ``[B,heads,S,d]`` tensors of one type and as many keys as queries; causal without ``blocks``."""
    if blocks is not None:
        masked: Tensor = _MaskedAttention.apply(queries, keys, values, scale, blocks)
        return masked
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
    tokvid_mask: Sequence[Block] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls; answers with ``[B,S,heads,d]``. Under autocast it computes in autocast's type.

    ``tokvid_mask`` is what the model was called with; without it attention is causal.
    """
    odd = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if tokvid_mask is None and kwargs.get("sliding_window") is not None:
        odd.append("sliding_window")
    if attention_mask is not None or dropout or odd or key.shape[2] != query.shape[2]:
        raise ModelError(
            f"{BLOCKS} attention knows causal rows and masks of tokvid, but {type(module).__name__} asks for"
            f" {odd[0] if odd else 'a mask, dropout or a cache'}; use sdpa"
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    with torch.autocast(device, enabled=False):
        scale = 1.0 / math.sqrt(query.shape[-1]) if scaling is None else scaling
        result = block_attention(query.to(dtype), key.to(dtype), value.to(dtype), scale, tokvid_mask)
    return result.transpose(1, 2), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


class _MaskedAttention(torch.autograd.Function):
    """On ``[B,heads,S,d]``: the keys of a block are gathered, so that nothing is computed of what nobody sees."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, scale: float, blocks: Sequence[Block]
    ) -> Tensor:
        result = torch.empty_like(queries)
        shares = []
        for block in blocks:
            part = slice(block.start, block.stop)
            seen = keys[block.row].index_select(1, block.keys)
            scores = torch.bmm(queries[block.row, :, part] * scale, seen.transpose(1, 2))
            if block.hidden is not None:
                scores.masked_fill_(block.hidden, -torch.inf)
            share = torch.softmax(scores, -1)
            result[block.row, :, part] = torch.bmm(share, values[block.row].index_select(1, block.keys))
            shares.append(share)
        ctx.save_for_backward(queries, keys, values, *shares)
        ctx.scale, ctx.blocks = scale, blocks
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, *shares = ctx.saved_tensors
        grad_queries = torch.empty_like(queries)
        grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
        for block, share in zip(ctx.blocks, shares, strict=True):
            row, part = block.row, slice(block.start, block.stop)
            incoming = grad[row, :, part]
            seen = keys[row].index_select(1, block.keys)
            grad_values[row].index_add_(1, block.keys, torch.bmm(share.transpose(1, 2), incoming))
            grad_share = torch.bmm(incoming, values[row].index_select(1, block.keys).transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_share, share, -1, share.dtype).mul_(ctx.scale)
            grad_queries[row, :, part] = torch.bmm(grad_scores, seen)
            grad_keys[row].index_add_(1, block.keys, torch.bmm(grad_scores.transpose(1, 2), queries[row, :, part]))
        return grad_queries, grad_keys, grad_values, None, None


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
