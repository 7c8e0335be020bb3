"""Who sees whom, said once for every token, and compiled to the form that each kind of attention takes.

Text is causal; a video is causal, or its latent frames are blocks that see themselves and what came before, or all of
it is one block; a masked copy of a frame stands beside the clean one without being seen; several documents share a row.
All of it is one rule over four numbers a token. Nothing here knows ids or codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokvid.errors import ModelError
from tokvid_lm.attention_windows import layer_windows

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCKS = "tokvid_blocks"
"""The name of our own attention, see :mod:`tokvid_lm.block_attention`."""

PADDING = -1
"""The ``document`` of a place that holds nothing."""

_FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
_Columns = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Run:
    """``length`` tokens in a row that see each other in one way: each what is before it, or in equal ``frames``
    that see themselves too (1: all of it at once). ``begins`` a document; the first run of a row always does."""

    length: int
    kind: Literal["causal", "block"] = "causal"
    frames: int = 1
    begins: bool = False

    def __post_init__(self) -> None:
        most = self.length if self.kind == "block" else 1
        if not 1 <= self.frames <= most or self.length < 1 or self.length % self.frames:
            raise ModelError(f"a {self.kind} run of {self.length} tokens has no {self.frames} equal frames")

    def firsts(self) -> Tensor:
        """Of each token the place in the run at which its block begins, int64 ``[length]``."""
        size = 1 if self.kind == "causal" else self.length // self.frames
        return torch.arange(self.length) // size * size


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskSpec:
    """Rows of packed documents. All tensors are ``[B,S]`` on one device, int64 but for the bool ``ghost``.

    ``document``: tokens of different documents never see each other; -1 is padding, which sees itself alone and nobody
    else sees. ``order``: the place in the causal order of the document, for all tokens of a block that of its first.
    ``block``: tokens of a document with one block see each other, whatever their order. ``ghost``: seen by its own
    block alone. With a ``window`` no key is seen whose order is farther behind, but for those whose order is below
    ``sinks``.

    A query sees a key of its document in the same block, or one that is no ghost and comes before it in the order.
    """

    document: Tensor
    order: Tensor
    block: Tensor
    ghost: Tensor
    window: int | None = None
    sinks: int = 0

    def __post_init__(self) -> None:
        shapes = {name: list(getattr(self, name).shape) for name in ("document", "order", "block", "ghost")}
        if self.document.ndim != 2 or len({tuple(shape) for shape in shapes.values()}) > 1:
            raise ModelError(f"the tensors of a MaskSpec are all [B,S], got {shapes}")
        if self.ghost.dtype != torch.bool:
            raise ModelError(f"ghost is bool, got {self.ghost.dtype}")
        if (self.window is not None and self.window < 0) or self.sinks < 0 or (self.sinks and self.window is None):
            raise ModelError(f"a window and its sinks are not negative, got window {self.window}, sinks {self.sinks}")

    @classmethod
    def causal(cls, rows: int, length: int) -> MaskSpec:
        """``rows`` plain causal documents of one ``length``."""
        return cls.packed_causal([[length]] * rows)

    @classmethod
    def packed_causal(cls, lengths: Sequence[Sequence[int]], *, length: int | None = None) -> MaskSpec:
        """Plain causal documents of the ``lengths`` in each row, side by side; the rest, up to ``length``, padding."""
        return cls.of_runs([[Run(length=size, begins=True) for size in row] for row in lengths], length=length)

    @classmethod
    def of_runs(cls, rows: Sequence[Sequence[Run]], *, length: int | None = None) -> MaskSpec:
        """Rows of runs; what is shorter than the longest row, or than ``length``, is padded on the right."""
        width = max(sum(run.length for run in row) for row in rows)
        if length is not None and length < width:
            raise ModelError(f"rows of {width} tokens do not fit into {length}: give a larger length or shorter rows")
        width = width if length is None else length
        document = torch.full((len(rows), width), PADDING)
        order = torch.zeros_like(document)
        for row, runs in enumerate(rows):
            numbers = accumulate(int(run.begins and place > 0) for place, run in enumerate(runs))
            start = first = 0
            for run, number in zip(runs, numbers, strict=True):
                first = start if run.begins else first
                stop = start + run.length
                document[row, start:stop] = number
                order[row, start:stop] = start - first + run.firsts()
                start = stop
        return cls(document=document, order=order, block=order, ghost=torch.zeros_like(order, dtype=torch.bool))

    @cached_property
    def is_causal(self) -> bool:
        """Whether all it holds is plain causal documents, each in one piece, and padding.

        Then any causal kernel computes it: as it is for one unpadded document a row, else a kernel for ragged rows.
        """
        document, order = self.document, self.order
        real = document != PADDING
        before, here = document[:, :-1], document[:, 1:]
        inside = (before == here) & real[:, 1:]
        steps = order[:, 1:] - order[:, :-1] == 1
        if self.window is not None or bool((self.ghost & real).any()) or not bool((steps | ~inside).all()):
            return False
        row = torch.arange(len(document), device=document.device)[:, None].expand_as(document)
        pieces = real[:, :1].sum() + ((before != here) & real[:, 1:]).sum()
        documents = torch.stack([row[real], document[real]])
        blocks = torch.stack([row[real], document[real], self.block[real]])
        if not blocks.shape[1]:
            return True
        return bool(documents.unique(dim=1).shape[1] == pieces) and blocks.unique(dim=1).shape[1] == blocks.shape[1]

    @cached_property
    def is_one_document_a_row(self) -> bool:
        """Whether no row holds two documents, or padding that is not on its right."""
        document = self.document
        return bool(((document == document[:, :1]) | (document == PADDING)).all()) and not bool(
            ((document[:, 1:] != PADDING) & (document[:, :-1] == PADDING)).any()
        )

    def sees(self, queries: _Columns, keys: _Columns) -> Tensor:
        """The rule, for the document, order, block and ghost of queries and keys that broadcast against each other.

        That padding sees itself is not part of it.
        """
        document, order, block, _ = queries
        key_document, key_order, key_block, key_ghost = keys
        before = key_order < order
        if self.window is not None:
            before = before & ((key_order >= order - self.window) | (key_order < self.sinks))
        visible = (key_block == block) | (before & ~key_ghost)
        return visible & (key_document == document) & (document != PADDING)

    def columns(self, *index: Any) -> _Columns:
        """Document, order, block and ghost at an ``index`` into ``[B,S]``."""
        return self.document[index], self.order[index], self.block[index], self.ghost[index]

    def to_bool(self) -> Tensor:
        """Bool ``[B,1,S,S]``, True where the query (third) sees the key (last). No row is empty."""
        every = slice(None)
        mask = self.sees(self.columns(every, every, None), self.columns(every, None, every))
        itself = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
        return (mask | (itself & (self.document == PADDING)[:, :, None])).unsqueeze(1)

    def to_additive(self, dtype: torch.dtype) -> Tensor:
        """``[B,1,S,S]`` of ``dtype``: 0 where the query sees the key, the lowest finite number elsewhere.

        No row is without a key. Where one were, the lowest number would give a mean of all, and -inf NaN.
        """
        mask = self.to_bool()
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)

    def to_block_mask(self, block_size: int = 128) -> BlockMask:
        """A ``BlockMask`` of torch's flex attention."""
        from torch.nn.attention.flex_attention import create_block_mask

        rows, length = self.order.shape

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            padding = (query == key) & (self.document[row, query] == PADDING)
            return self.sees(self.columns(row, query), self.columns(row, key)) | padding

        return create_block_mask(sees, rows, None, length, length, device=str(self.order.device), BLOCK_SIZE=block_size)

    def to_ragged(self) -> dict[str, Any]:
        """What flash attention takes for plain causal documents: where each begins in all rows one after the other.

        Every token of padding is a document of its own.
        """
        document = self.document
        starts = torch.ones_like(document, dtype=torch.bool)
        starts[:, 1:] = (document[:, 1:] != document[:, :-1]) | (document[:, 1:] == PADDING)
        places = starts.flatten().nonzero().squeeze(1)
        ends = torch.cat([places, places.new_tensor([document.numel()])]).to(torch.int32)
        longest = int(ends.diff().max())
        return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}

    def narrowed(self, window: int | None) -> MaskSpec:
        """With a ``window`` too, unless its own is narrower."""
        if window is None or (self.window is not None and self.window <= window):
            return self
        return replace(self, window=window)


def mask_for(model: PreTrainedModel, spec: MaskSpec, position_ids: Tensor | None = None) -> dict[str, Any]:
    """What ``model`` is called with so that its attention, of whatever kind, sees what ``spec`` says.

    ``position_ids`` are ``[B,S]``, or ``[3,B,S]`` where :mod:`tokvid_lm.positions` has replaced the rotary embedding;
    of plain causal documents they may be left out. Sliding windows of the model are kept, also where its layers
    differ; they count in the order of ``spec``. What padding gives is finite and means nothing. Raises
    :class:`ModelError` for attention that cannot see so.
    """
    check_backend(model, spec)
    kind: str = model.config._attn_implementation
    if position_ids is None and spec.is_causal:
        position_ids = spec.order
    arguments: dict[str, Any] = {} if position_ids is None else {"position_ids": position_ids}
    windows = layer_windows(model.config)
    # A mask of ones says causal, one document a row, to every kind of attention. Without any, transformers would look
    # for documents in the positions, which it finds for flash in batches of one row only, and never in [3,B,S].
    ones = torch.ones_like(spec.document)
    if _is_flash(kind):
        return arguments | {"attention_mask": ones} | spec.to_ragged()
    plain = spec.is_causal and spec.is_one_document_a_row
    if kind == BLOCKS:
        if isinstance(windows, dict):
            raise ModelError(f"{BLOCKS} attention gives all layers one mask, but this model's differ: use sdpa")
        arguments["attention_mask"] = ones
        if not plain or windows is not None:
            from tokvid_lm.block_attention import compile_mask

            arguments["tokvid_mask"] = compile_mask(spec.narrowed(_behind(windows)))
        return arguments
    if plain and kind != "flex_attention":
        return arguments | {"attention_mask": ones}
    if isinstance(windows, dict):
        forms = {name: _form(spec.narrowed(_behind(size)), kind, model.dtype) for name, size in windows.items()}
        return arguments | {"attention_mask": forms}
    return arguments | {"attention_mask": _form(spec.narrowed(_behind(windows)), kind, model.dtype)}


def check_backend(attention: PreTrainedModel | str, form: object) -> None:
    """Raise :class:`ModelError` where attention would fail or, worse, would not see what it is given.

    ``attention`` is a model or the name of an implementation; ``form`` a :class:`MaskSpec`, or what is handed on as the
    mask: a tensor, a ``BlockMask``, a mask of :mod:`tokvid_lm.block_attention`, or None for plain causal rows.
    """
    kind: str = attention if isinstance(attention, str) else attention.config._attn_implementation
    if _is_flash(kind):
        _check_flash(kind, form)
        return
    if kind not in ("sdpa", "eager", "flex_attention", BLOCKS):
        raise ModelError(f"attention {kind!r} is not known to take masks: use sdpa, eager or flex_attention")
    if kind == "eager" and isinstance(form, Tensor) and form.dtype == torch.bool:
        raise ModelError("eager attention would add a bool mask to the scores: give it to_additive(dtype)")
    if kind == "flex_attention" and isinstance(form, Tensor):
        raise ModelError("flex_attention would add a mask that is a tensor to the scores: give it to_block_mask()")
    takes_tensors = kind in ("sdpa", "eager")
    if form is not None and not isinstance(form, MaskSpec) and isinstance(form, Tensor) != takes_tensors:
        raise ModelError(f"{kind} attention takes no {type(form).__name__}: give it what mask_for(model, spec) says")
    if isinstance(attention, str):
        return
    if kind == "flex_attention" and attention.device.type == "cpu":
        raise ModelError(
            "flex_attention has no backward pass on a processor, and gives wrong numbers there for rows shorter than a"
            " block: use attention sdpa"
        )
    if kind == BLOCKS and not attention._supports_attention_backend:
        raise ModelError(f"{type(attention).__name__} hands no mask on to {BLOCKS} attention: use sdpa")


def _check_flash(kind: str, form: object) -> None:
    package = _FLASH_PACKAGES.get(kind)
    if package is not None and find_spec(package) is None:
        raise ModelError(
            f"{kind} needs the package {package.replace('_', '-')}, which is not installed: use attention sdpa, or"
            " flash_attention_2 after pip install 'tokvid[flash]' --no-build-isolation"
        )
    if form is not None and not (isinstance(form, MaskSpec) and form.is_causal):
        raise ModelError(
            f"{kind} takes no mask but the causal one, and these documents have another (frames that see themselves,"
            " masked copies, a window, or a mask made elsewhere): use attention sdpa or flex_attention"
        )


def _is_flash(kind: str) -> bool:
    return "flash" in kind


def _behind(window: int | None) -> int | None:
    """The windows of transformers count the place itself; ours say how far behind."""
    return None if window is None else window - 1


def _form(spec: MaskSpec, kind: str, dtype: torch.dtype) -> Tensor | BlockMask:
    if kind == "flex_attention":
        return spec.to_block_mask()
    return spec.to_additive(dtype) if kind == "eager" else spec.to_bool()
