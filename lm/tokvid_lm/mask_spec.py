"""Who sees whom, said once for every token, and compiled to what each kind of attention takes.

Text is causal; a video is causal, or its latent frames are blocks that see themselves and what came before, or all of
it is one block; several documents share a row without seeing each other. All of it is one rule over four numbers a
token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokvid.errors import ModelError
from tokvid_lm.attention_windows import layer_windows

BLOCKS = "tokvid_blocks"
"""The name of our own attention, see :mod:`tokvid_lm.block_attention`."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskSpec:
    """Rows of packed documents; all tensors are ``[B,S]``, int64 but for the bool ``ghost``.

    ``document``: tokens of different documents never see each other; -1 is padding, which sees itself alone.
    ``order``: the place in the causal order of its document, for all tokens of a block that of its first. ``block``:
    tokens of a document with one block see each other. ``ghost``: seen by its own block alone. With a ``window`` only
    the last so many places of the order are seen, the own one included, besides the first ``sinks`` of the document.

    A query sees a key of its document in the same block, or one that is no ghost and comes before it in the order.
    """

    document: Tensor
    order: Tensor
    block: Tensor
    ghost: Tensor
    window: int | None = None
    sinks: int = 0

    @classmethod
    def causal(cls, lengths: list[list[int]]) -> MaskSpec:
        """Plain causal documents: the ``lengths`` of those of each row, side by side, the rest padding."""
        width = max(sum(row) for row in lengths)
        document, order = (torch.full((len(lengths), width), fill) for fill in (-1, 0))
        for row, sizes in enumerate(lengths):
            start = 0
            for number, size in enumerate(sizes):
                document[row, start : start + size] = number
                order[row, start : start + size] = torch.arange(size)
                start += size
        return cls(document=document, order=order, block=order, ghost=torch.zeros_like(order, dtype=torch.bool))

    @cached_property
    def is_causal(self) -> bool:
        """Whether all documents are plainly causal, each without a gap: any causal kernel can compute them."""
        inside = (self.document[:, 1:] == self.document[:, :-1]) & (self.document[:, 1:] >= 0)
        steps = self.order[:, 1:] - self.order[:, :-1]
        new_block = self.block[:, 1:] != self.block[:, :-1]
        return bool(self.window is None and not self.ghost.any() and (~inside | ((steps == 1) & new_block)).all())

    @cached_property
    def is_one_document_a_row(self) -> bool:
        """Whether no row holds two documents; padding stands behind."""
        return bool((self.document[:, 1:] <= self.document[:, :-1]).all() and (self.document <= 0).all())

    def part(self, row: int, places: slice) -> MaskSpec:
        """Some places of one row; what they see elsewhere is lost, so they should be whole documents."""
        columns = {name: getattr(self, name)[row : row + 1, places] for name in ("document", "order", "block", "ghost")}
        return replace(self, **columns)

    def sees(self, queries: tuple[Any, ...], keys: tuple[Any, ...]) -> Tensor:
        """The rule, for any places: ``queries`` and ``keys`` index ``[B,S]`` and broadcast against each other."""
        document, order = self.document, self.order
        before = order[keys] < order[queries]
        if self.window is not None:
            near = order[queries] - order[keys] < self.window
            before = before & (near | (order[keys] < self.sinks))
        visible = (self.block[queries] == self.block[keys]) | (before & ~self.ghost[keys])
        return visible & (document[queries] == document[keys]) & (document[queries] >= 0)

    def to_bool(self) -> Tensor:
        """Bool ``[B,1,S,S]``, True where the query (third) sees the key (last); padding sees itself."""
        rows, length = self.order.shape
        row = torch.arange(rows, device=self.order.device)[:, None, None]
        place = torch.arange(length, device=self.order.device)
        queries, keys = place[None, :, None], place[None, None, :]
        mask = self.sees((row, queries), (row, keys))
        # A row without any key would be NaN in some kernels.
        return (mask | (queries == keys) & (self.document < 0)[:, :, None]).unsqueeze(1)

    def to_additive(self, dtype: torch.dtype) -> Tensor:
        """``[B,1,S,S]`` of ``dtype``: 0 where the query sees the key, the lowest finite number elsewhere."""
        return additive(self.to_bool(), dtype)

    def to_block_mask(self, block_size: int = 128) -> Any:
        """A ``BlockMask`` of torch's flex attention."""
        from torch.nn.attention.flex_attention import create_block_mask

        rows, length = self.order.shape

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return self.sees((row, query), (row, key)) | (query == key)

        return create_block_mask(sees, rows, None, length, length, device=str(self.order.device), BLOCK_SIZE=block_size)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as what is added to scores: 0 where True, the lowest finite number elsewhere."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def mask_for(model: PreTrainedModel, spec: MaskSpec, position_ids: Tensor) -> dict[str, Any]:
    """What a model is called with so that its attention sees what ``spec`` says: a mask and positions.

    Its own sliding windows are kept, also where layers differ. Raises :class:`ModelError` for attention that cannot.
    """
    kind = model.config._attn_implementation
    check_attention(kind, spec)
    plain = position_ids.ndim == 2 and spec.is_causal
    if plain and spec.is_one_document_a_row and kind != "flex_attention":
        return {"attention_mask": None}  # what a causal model does by itself
    places: dict[str, Any] = {"position_ids": position_ids}
    windows = layer_windows(model.config)
    if kind.startswith("flash_attention"):
        # transformers cuts a row where positions begin anew, and calls the kernel for ragged rows.
        return places | {"attention_mask": None}
    if kind == BLOCKS:
        from tokvid_lm.block_attention import compile_mask

        return places | {"attention_mask": None, "tokvid_mask": compile_mask(_windowed(spec, _single(windows)))}
    if isinstance(windows, dict):
        forms = {name: _form(_windowed(spec, window), kind, model.dtype) for name, window in windows.items()}
        return places | {"attention_mask": forms}
    return places | {"attention_mask": _form(_windowed(spec, windows), kind, model.dtype)}


def check_attention(kind: str, spec: MaskSpec) -> None:
    """Raise :class:`ModelError` for an implementation of attention that ``spec`` cannot be given to."""
    if kind.startswith("flash_attention"):
        package = "flash_attn" if kind == "flash_attention_2" else None
        if package is not None and find_spec(package) is None:
            raise ModelError(
                "flash_attention_2 needs the package flash-attn, which is not installed: pip install"
                " 'tokvid[flash]' --no-build-isolation, or use attention sdpa"
            )
        if not spec.is_causal:
            raise ModelError(
                f"{kind} takes no mask but the causal one, and these documents have another (masked modes, frames that"
                " see themselves, or windows with sinks): use attention sdpa or flex_attention"
            )
    elif kind not in ("sdpa", "eager", "flex_attention", BLOCKS):
        raise ModelError(f"attention {kind!r} is not known to take masks: use sdpa, eager or flex_attention")


def _form(spec: MaskSpec, kind: str, dtype: torch.dtype) -> Any:
    """A bool mask would be silently wrong for eager attention, which adds it, as would a tensor for flex."""
    if kind == "flex_attention":
        return spec.to_block_mask()
    return spec.to_additive(dtype) if kind == "eager" else spec.to_bool()


def _windowed(spec: MaskSpec, window: int | None) -> MaskSpec:
    if window is None:
        return spec
    return replace(spec, window=window if spec.window is None else min(window, spec.window))


def _single(windows: int | dict[str, int | None] | None) -> int | None:
    if isinstance(windows, dict):
        raise ModelError(f"{BLOCKS} attention gives all layers one mask, but this model's differ: use sdpa")
    return windows
