"""Attention for training on a processor: plain matrix products over blocks of queries, with its own backward.

torch's fused attention computes the whole square where it is given a mask, and in bf16 on a processor spends most of
its time in the backward pass. Here each block of queries meets only the keys that one of its queries sees: those
before its end, or what a :class:`~tokvid_lm.mask_spec.MaskSpec` says. It knows no dropout, no soft cap and no cache.

A compiled mask comes as an argument of the model's call, which transformers hands down to every layer's attention. So
nothing is set and unset around a call, and a layer that gradient checkpointing computes once more in the backward pass
gets the mask of its own call again, whatever was called in between.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from tokvid.errors import ModelError
from tokvid_lm.mask_spec import BLOCKS, PADDING, MaskSpec

BLOCK = 128
"""Queries at a time: small enough to skip most of what the mask would throw away, large enough for a product."""

_UNSUPPORTED = ("softcap", "s_aux", "head_mask", "position_bias")


def register() -> str:
    """Make this attention known to transformers, for ``model.set_attn_implementation(name)``; returns its name."""
    AttentionInterface.register(BLOCKS, block_attention_forward)
    AttentionMaskInterface.register(BLOCKS, _no_mask)
    return BLOCKS


@dataclass(frozen=True, eq=False, kw_only=True)
class Block:
    """Queries ``[start, stop)`` of row ``row`` of a batch, and the keys that one of them sees.

    ``keys`` are ranges of places in ascending order, taken one after the other. ``hidden``, where there is any, is bool
    ``[stop - start, n]`` for those of them from number ``offset`` on: True where a query does not see a key. All others
    are seen by all queries.
    """

    row: int
    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
    offset: int = 0
    hidden: Tensor | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class CompiledMask:
    """The ``blocks`` of a batch ``[rows,length]``, made once for all layers and both passes; ``window`` is its spec's.
    Every place of the batch is a query of one block."""

    rows: int
    length: int
    window: int | None
    blocks: tuple[Block, ...]


def compile_mask(spec: MaskSpec, *, size: int = BLOCK) -> CompiledMask:
    """What :func:`block_attention` takes for ``spec``, in blocks of about ``size`` queries.

    No block reaches over the end of a document or of a masked copy.
    """
    rows, length = spec.order.shape
    blocks = [block for row in range(rows) for block in _blocks_of(spec, row, size)]
    return CompiledMask(rows=rows, length=length, window=spec.window, blocks=tuple(blocks))


def _blocks_of(spec: MaskSpec, row: int, size: int) -> Iterator[Block]:
    """The blocks of a row: of each document, and each masked copy in it, nearly equal numbers of queries."""
    document, _, block, ghost = spec.columns(row)
    units = _edges(document, block, ghost)
    for first, last in pairwise(_edges(document, torch.where(ghost, block, -1))):
        places = (document == document[first]).nonzero().squeeze(1)
        begin, end = int(places[0]), int(places[-1]) + 1
        inside = units[bisect_right(units, first) - 1 : bisect_right(units, last)]
        for start, stop in pairwise(_cuts(inside, size)):
            if int(document[first]) == PADDING:
                yield _block(row, start, stop, start, torch.eye(stop - start, dtype=torch.bool, device=document.device))
                continue
            queries = spec.columns(row, slice(start, stop), None)
            yield _block(row, start, stop, begin, spec.sees(queries, spec.columns(row, None, slice(begin, end))))


def _block(row: int, start: int, stop: int, begin: int, seen: Tensor) -> Block:
    """Queries ``[start, stop)``, of which bool ``seen`` ``[stop - start, n]`` says what they see from ``begin`` on."""
    anybody, everybody = seen.any(0), seen.all(0)
    edges = _edges(anybody)
    inside = list(pairwise(edges))[int(not anybody[0]) :: 2]  # seen and unseen ranges take turns
    keys = tuple((begin + first, begin + last) for first, last in inside)
    masked = (anybody & ~everybody).nonzero().squeeze(1)
    if not len(masked):
        return Block(row=row, start=start, stop=stop, keys=keys)
    places = anybody[: int(masked[0])].sum()
    hull = slice(int(masked[0]), int(masked[-1]) + 1)
    hidden = ~seen[:, hull]
    if len(inside) > 1:
        hidden = hidden[:, anybody[hull]]
    return Block(row=row, start=start, stop=stop, keys=keys, offset=int(places), hidden=hidden)


def _edges(*columns: Tensor) -> list[int]:
    """Where runs of equal values of all ``columns`` ``[n]`` begin, and n."""
    changes = torch.stack([column[1:] != column[:-1] for column in columns]).any(0)
    return [0, *(changes.nonzero().squeeze(1) + 1).tolist(), len(columns[0])]


def _cuts(units: list[int], size: int) -> list[int]:
    """Where to cut what lies between the first and the last of ``units`` into parts of about ``size``, at one of them
    where one is near: tokens that see the same want no mask."""
    start, stop = units[0], units[-1]
    count = -(-(stop - start) // size)
    cuts = [start]
    for number in range(1, count):
        even = start + (stop - start) * number // count
        unit = units[bisect_right(units, even) - 1]
        cuts.append(unit if unit > cuts[-1] else even)
    return [*cuts, stop]


def block_attention(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float, mask: CompiledMask | None = None
) -> Tensor:
    """Attention of ``[B,heads,S,d]`` tensors of one type and as many keys as queries; causal without a ``mask``."""
    if mask is not None:
        masked: Tensor = _MaskedAttention.apply(queries, keys, values, scale, mask)
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
    sliding_window: int | None = None,
    tokvid_mask: CompiledMask | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls; answers with ``[B,S,heads,d]``. Under autocast it computes in autocast's type.

    ``tokvid_mask`` is what the model was called with; without it attention is causal.
    """
    odd = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    window = None if tokvid_mask is None else tokvid_mask.window
    if sliding_window is not None and (window is None or window >= sliding_window):
        odd.append("sliding_window")
    if attention_mask is not None or dropout or odd or key.shape[2] != query.shape[2]:
        raise ModelError(
            f"{BLOCKS} attention is causal or takes a mask of tokvid, but {type(module).__name__} asks for"
            f" {odd[0] if odd else 'a mask, dropout or a cache'}; use sdpa"
        )
    shape = (query.shape[0], query.shape[2])
    if tokvid_mask is not None and shape != (tokvid_mask.rows, tokvid_mask.length):
        raise ModelError(f"the mask is of {tokvid_mask.rows} rows of {tokvid_mask.length}, but the batch of {shape}")
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
    """On ``[B,heads,S,d]``. Keys in one range are a view; of several ranges they are copied side by side."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, scale: float, mask: CompiledMask) -> Tensor:
        queries = queries * scale
        result = torch.empty_like(queries)
        shares = []
        for block in mask.blocks:
            row, part = block.row, slice(block.start, block.stop)
            scores = torch.bmm(queries[row, :, part], _ranges(keys[row], block).transpose(1, 2))
            if block.hidden is not None:
                columns = slice(block.offset, block.offset + block.hidden.shape[1])
                scores[:, :, columns].masked_fill_(block.hidden, -torch.inf)
            share = torch.softmax(scores, -1)
            result[row, :, part] = torch.bmm(share, _ranges(values[row], block))
            shares.append(share)
        ctx.save_for_backward(queries, keys, values, *shares)
        ctx.scale, ctx.mask = scale, mask
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, *shares = ctx.saved_tensors
        grad_queries = torch.empty_like(queries)
        grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
        for block, share in zip(ctx.mask.blocks, shares, strict=True):
            row, part = block.row, slice(block.start, block.stop)
            incoming = grad[row, :, part]
            _add(grad_values[row], block, torch.bmm(share.transpose(1, 2), incoming))
            grad_share = torch.bmm(incoming, _ranges(values[row], block).transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_share, share, -1, share.dtype)
            grad_queries[row, :, part] = torch.bmm(grad_scores, _ranges(keys[row], block))
            _add(grad_keys[row], block, torch.bmm(grad_scores.transpose(1, 2), queries[row, :, part]))
        return grad_queries.mul_(ctx.scale), grad_keys, grad_values, None, None


def _ranges(rows: Tensor, block: Block) -> Tensor:
    """Of ``[heads,S,d]`` what the queries of a block see."""
    parts = [rows[:, start:stop] for start, stop in block.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _add(total: Tensor, block: Block, part: Tensor) -> None:
    """Add to ``total`` ``[heads,S,d]`` what belongs to the keys of a block."""
    offset = 0
    for start, stop in block.keys:
        total[:, start:stop] += part[:, offset : offset + stop - start]
        offset += stop - start


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
