"""Feeds rows of ids to a model, piece by piece: a prompt, then ids that see all before them, or blocks that see
themselves.

It holds the cache, the masks and the positions, and takes back what was only tried. It knows ids, not what they mean.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokvid.errors import ModelError
from tokvid_lm.attention_windows import layer_windows
from tokvid_lm.collate import collate
from tokvid_lm.document import Document
from tokvid_lm.head import head_logits
from tokvid_lm.positions import Coordinates, PositionScheme
from tokvid_lm.samplers.cache import ReservedCache

_CACHE_NAMES = ("cache", "past_key_values")  # transformers renamed it in 5.24
# Compiled steps have room for a multiple of so many ids, so that one program serves many lengths of prompts.
_COMPILED_ROOM = 64


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a model is fed: in the type of ``autocast`` (None: its own), with ``compiled`` steps or as it is.

    Without ``use_cache`` everything is computed anew each time, which is slow and says the same: tests compare the two.
    """

    autocast: torch.dtype | None = None
    compiled: bool = False
    use_cache: bool = True

    def __post_init__(self) -> None:
        if self.compiled and not self.use_cache:
            raise ModelError("a compiled step reads a cache: leave one of compiled=True and use_cache=False out")


PLAIN = Way()
"""With a cache, in the model's own type, not compiled."""


class Rows(Protocol):
    """What a sampler asks of rows under way; :class:`Runner` says what of each."""

    lengths: Tensor

    def prefill(self) -> Tensor: ...

    def place_ids(self, place: Coordinates) -> Tensor: ...

    def feed(self, ids: Tensor, place_ids: Tensor, *, block: bool = False, keep: bool = True) -> Tensor: ...

    def logits(self, features: Tensor, low: int, high: int) -> Tensor: ...


class Runner:
    """Rows under way. ``prompts`` are documents of any lengths; at most ``room`` more ids are fed.

    ``head`` is the model's plain head, or None where the model makes its logits otherwise. Raises :class:`ModelError`
    for a model that has no cache, or whose attention takes no masks of ours.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        head: nn.Linear | None,
        prompts: Sequence[Document],
        room: int,
        *,
        positions: PositionScheme,
        way: Way = PLAIN,
    ) -> None:
        self._body: nn.Module = model if head is None else model.base_model
        self._embed = model.get_input_embeddings()
        self._head = head
        self._positions = positions
        accepted = inspect.signature(model.forward).parameters
        name = next((name for name in _CACHE_NAMES if name in accepted), None)
        if name is None:
            raise ModelError(f"{type(model).__name__} has no key-value cache; tokvid cannot sample from it")
        self._cache_name = name
        self._takes_positions = "position_ids" in accepted
        self._implementation = model.config._attn_implementation
        self._windows = layer_windows(model.config)
        self.lengths = torch.tensor([len(prompt) for prompt in prompts])
        longest = int(self.lengths.max())
        self._device, self._dtype = model.device, model.dtype
        self._ids, self._places = (part.to(self._device) for part in _left_padded(prompts, positions))
        capacity = longest + room
        if way.compiled:
            capacity += -capacity % _COMPILED_ROOM
        # Padding is no key for anybody; all that is fed later is.
        self._is_key = (torch.arange(capacity) >= longest - self.lengths[:, None]).to(self._device)
        # Of each place in the cache, as windows count it: a block stands where it begins (MaskSpec.order).
        self._order = torch.arange(capacity, device=self._device)
        self._cache = ReservedCache(model.config, capacity, stored_as=way.autocast) if way.use_cache else None
        self._step = torch.compile(self._body, dynamic=False) if way.compiled else None
        self._seen = 0
        self._history: tuple[Tensor, Tensor, Tensor] | None = None  # what was kept, without a cache

    @property
    def seen(self) -> int:
        """Positions fed so far, padding included."""
        return self._seen

    def prefill(self) -> Tensor:
        """Feed the prompts; the features ``[rows,1,...]`` of their last ids."""
        return self._run(self._ids, self._places, block=False, keep=True)[:, -1:]

    def place_ids(self, place: Coordinates) -> Tensor:
        """What the model takes as positions, ``[...,rows,n]``; of many feeds they are best made at once."""
        return self._positions.of(place).to(self._device)

    def feed(self, ids: Tensor, place_ids: Tensor, *, block: bool = False, keep: bool = True) -> Tensor:
        """Feed ``ids`` ``[rows,n]``, at most as many in all as there is room for; features ``[rows,n,...]`` for
        :meth:`logits`. In place of ids may be what the model reads, embeddings ``[rows,n,H]``.

        They see all before them and, as a ``block``, one another, else those of them that come before. With ``keep``
        off they are forgotten again.
        """
        return self._run(ids.to(self._device), place_ids, block=block, keep=keep)

    def embed(self, ids: Tensor) -> Tensor:
        """What the model reads where ``ids`` ``[rows,n]`` stand, ``[rows,n,H]``."""
        embedded: Tensor = self._embed(ids.to(self._device))
        return embedded

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` positions, padding included."""
        self._seen = min(self._seen, length)
        if self._cache is not None:
            self._cache.rewind(length)
        elif self._history is not None:
            ids, places, mask = self._history
            self._history = (ids[:, :length], places[..., :length], mask[:, :length, :length]) if length else None

    def make_room(self, count: int) -> None:
        """See to it that ``count`` more ids can be fed; room grows by half or more, so that this is seldom work."""
        capacity = self._is_key.shape[1]
        if self._seen + count <= capacity:
            return
        more = max(self._seen + count, capacity + capacity // 2) - capacity
        self._is_key = torch.nn.functional.pad(self._is_key, (0, more), value=True)
        self._order = torch.cat([self._order, torch.arange(capacity, capacity + more, device=self._device)])
        if self._cache is not None:
            self._cache.grow(capacity + more)

    def logits(self, features: Tensor, low: int, high: int) -> Tensor:
        """Columns ``[low, high)`` of the logits of features ``[...,D]``, float32; raises for NaN."""
        logits = features[..., low:high] if self._head is None else head_logits(self._head, features, low, high)
        logits = logits.float()
        if bool(logits.isnan().any()):
            raise ModelError("the model's logits are NaN; its weights are broken or overflow")
        return logits

    def _run(self, ids: Tensor, places: Tensor, *, block: bool, keep: bool) -> Tensor:
        start, count = self._seen, ids.shape[1]
        mask = self._is_key[:, None, : start + count]
        own_order = self._order[start : start + count]
        torch.arange(start, start + count, out=own_order)
        if block:
            own_order.fill_(start)
        if count > 1:
            inside = torch.ones(count, count, dtype=torch.bool, device=ids.device)
            inside = inside if block else inside.tril_()
            own = inside & mask[..., start:] | torch.eye(count, dtype=torch.bool, device=ids.device)
            mask = torch.cat([mask[..., :start].expand(-1, count, -1), own], dim=2)
        if self._cache is None:
            return self._anew(ids, places, mask, keep=keep)
        # Separators are fed with the code after them: pieces too rare and of too many lengths to compile for.
        if self._step is not None and start and (block or count == 1):
            return self._fixed_step(ids, places, mask, keep=keep)
        features = self._forward(ids, places, mask, {self._cache_name: self._cache, "use_cache": True})
        if keep:
            self._seen = start + count
        else:
            self._cache.rewind(start)
        return features

    def _fixed_step(self, ids: Tensor, places: Tensor, mask: Tensor, *, keep: bool) -> Tensor:
        """The compiled step: over all that the cache has room for, so that shapes follow the number of ids alone."""
        assert self._cache is not None and self._step is not None
        start, end = self._seen, mask.shape[2]
        whole = torch.nn.functional.pad(mask, (0, self._is_key.shape[1] - end))
        arguments: dict[str, Any] = {"position_ids": places} if self._takes_positions else {}
        with self._cache.written_at(torch.arange(start, end, device=ids.device), end if keep else start):
            arguments |= {"attention_mask": self._mask_argument(whole, start), self._cache_name: self._cache}
            output = self._step(use_cache=True, **_read(ids), **arguments)
        self._seen = end if keep else start
        return self._features(output)

    def _anew(self, ids: Tensor, places: Tensor, mask: Tensor, *, keep: bool) -> Tensor:
        """Without a cache: all that was kept, with the mask that each piece had, and the new piece."""
        if self._history is not None:
            old_ids, old_places, old_mask = self._history
            if ids.ndim > old_ids.ndim:
                old_ids = self.embed(old_ids)
            wide = torch.nn.functional.pad(old_mask, (0, ids.shape[1]))
            ids, places = torch.cat([old_ids, ids], dim=1), torch.cat([old_places, places], dim=-1)
            mask = torch.cat([wide, mask], dim=1)
        features = self._forward(ids, places, mask, {"use_cache": False})
        start = self._seen
        if keep:
            self._history = (ids, places, mask)
            self._seen = ids.shape[1]
        return features[:, start:]

    def _forward(self, ids: Tensor, places: Tensor, mask: Tensor, cache: dict[str, Any]) -> Tensor:
        arguments: dict[str, Any] = {"position_ids": places} if self._takes_positions else {}
        attention_mask = self._mask_argument(mask, mask.shape[2] - mask.shape[1])
        output = self._body(**_read(ids), attention_mask=attention_mask, **arguments, **cache)
        return self._features(output)

    def _features(self, output: Any) -> Tensor:
        features: Tensor = output.logits if self._head is None else output.last_hidden_state
        return features

    def _mask_argument(self, mask: Tensor, first: int) -> Any:
        """``mask`` ``[rows,n,keys]`` in the form that the model's attention takes, for each kind of its layers.

        ``first`` is the place of the first query.
        """
        if isinstance(self._windows, dict):
            return {kind: self._form(self._windowed(mask, window, first)) for kind, window in self._windows.items()}
        return self._form(self._windowed(mask, self._windows, first))

    def _windowed(self, mask: Tensor, window: int | None, first: int) -> Tensor:
        """``mask`` ``[rows,n,keys]`` without the keys whose order is ``window`` or more behind that of a query."""
        if window is None:
            return mask
        queries, keys = mask.shape[1:]
        return mask & (self._order[first : first + queries, None] - self._order[:keys] < window)

    def _form(self, mask: Tensor) -> Tensor:
        wide = mask.unsqueeze(1)
        if self._implementation != "eager":
            return wide
        nothing = torch.finfo(self._dtype).min
        return torch.zeros_like(wide, dtype=self._dtype).masked_fill_(~wide, nothing)


def _read(ids: Tensor) -> dict[str, Tensor]:
    """Ids or embeddings, by the name that a model knows them by."""
    return {"inputs_embeds" if ids.is_floating_point() else "input_ids": ids}


def _left_padded(prompts: Sequence[Document], positions: PositionScheme) -> tuple[Tensor, Tensor]:
    """Ids ``[rows,n]`` and what the model takes as positions, with the padding on the left."""
    longest = max(map(len, prompts))
    batch = collate([[prompt] for prompt in prompts], pad_id=0, positions=positions)
    shift = (torch.arange(longest) - torch.tensor([longest - len(prompt) for prompt in prompts])[:, None]) % longest
    places = batch["position_ids"]
    return batch["input_ids"].gather(1, shift), places.gather(-1, shift.expand_as(places))


@contextmanager
def sampling_from(model: PreTrainedModel, autocast: torch.dtype | None) -> Iterator[None]:
    """The model as samplers want it: in evaluation mode, in ``autocast``, its attention one that takes masks of
    ours."""
    training, implementation = model.training, model.config._attn_implementation
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(_autocast(model.device, autocast))
        model.eval()
        if implementation not in ("sdpa", "eager"):
            # The same numbers; flex wants a program for every shape and flash takes no masks.
            model.set_attn_implementation("sdpa")
        try:
            yield
        finally:
            if implementation not in ("sdpa", "eager"):
                model.set_attn_implementation(implementation)
            model.train(training)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def check_context(model: PreTrainedModel, length: int) -> None:
    """Raise :class:`ModelError` when the model cannot see ``length`` positions."""
    limit = context_of(model)
    if limit is not None and length > limit:
        raise ModelError(
            f"prompt and answer need {length} positions, but the model's context has {limit};"
            " shorten the prompt, or ask for fewer frames, a smaller picture or fewer new tokens"
        )


def context_of(model: PreTrainedModel) -> int | None:
    """How many positions the model can see, where it says."""
    limit: int | None = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return limit
