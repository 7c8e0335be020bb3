"""A key-value cache that writes in place, and takes back what was not meant to stay.

``DynamicCache`` copies all it holds at every step; with the length known beforehand, the buffers are made once. Every
layer holds all positions, also those whose attention has a window: the window is in the mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


class ReservedLayer(DynamicLayer):
    """A ``DynamicLayer`` whose keys and values are views into buffers reserved for ``capacity`` positions.

    With ``stored_as`` they are held in that type, for autocast would cast the whole cache at every step.
    """

    def __init__(self, capacity: int, stored_as: torch.dtype | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call,unused-ignore]
        self.capacity = capacity
        self.stored_as = stored_as
        self._buffers: tuple[Tensor, Tensor] | None = None
        self.place: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values ``[rows, heads, n, head size]`` and return all there are.

        With a ``place`` int64 ``[n]`` they are written there, and what is returned are the whole buffers: shapes, and
        so a compiled step, stay the same however much is held.
        """
        if self.place is not None:
            assert self._buffers is not None
            for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
                buffer.index_copy_(2, self.place, states.to(buffer.dtype))
            return self._buffers
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._buffers is None or end > self.capacity:
            self._reserve(key_states, value_states, max(end, self.capacity))
        assert self._buffers is not None
        keys, values = self._buffers
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` positions; nothing is copied or freed."""
        if self._buffers is not None and length < self.get_seq_length():
            self.holds(length)

    def holds(self, length: int) -> None:
        """Say that the first ``length`` positions are held, when they were written at a ``place``."""
        assert self._buffers is not None
        keys, values = self._buffers
        self.keys, self.values = keys[..., :length, :], values[..., :length, :]

    def grow(self, capacity: int) -> None:
        """Make room for ``capacity`` positions; what is held stays."""
        if self._buffers is not None and capacity > self.capacity:
            keys, values = self._buffers
            self._reserve(keys, values, capacity)
            self.holds(self.get_seq_length())
        self.capacity = max(self.capacity, capacity)

    def _reserve(self, key_states: Tensor, value_states: Tensor, capacity: int) -> None:
        held = self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        buffers = []
        for states, old in ((key_states, self.keys), (value_states, self.values)):
            rows, heads, _, size = states.shape
            # Zeros: a masked place counts nothing, but nothing times what is not finite is NaN.
            buffer = states.new_zeros(rows, heads, capacity, size, dtype=self.stored_as)
            if held and old is not None:
                buffer[..., :held, :] = old
            buffers.append(buffer)
        self._buffers = (buffers[0], buffers[1])
        self.capacity = capacity


class ReservedCache(DynamicCache):
    """An empty cache for one generation of at most ``capacity`` positions, prompt included.

    ``stored_as``: the type of autocast, if it is on.
    """

    def __init__(self, config: PreTrainedConfig, capacity: int, *, stored_as: torch.dtype | None = None) -> None:
        super().__init__(config=config)
        self._reserved = [ReservedLayer(capacity, stored_as) for _ in self.layers]
        self.layers = list(self._reserved)

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` positions."""
        for layer in self._reserved:
            layer.rewind(length)

    def grow(self, capacity: int) -> None:
        """Make room for ``capacity`` positions."""
        for layer in self._reserved:
            layer.grow(capacity)

    @contextmanager
    def written_at(self, place: Tensor, end: int) -> Iterator[None]:
        """Inside, updates write at ``place`` and give whole buffers; after it the first ``end`` positions are held."""
        for layer in self._reserved:
            layer.place = place
        try:
            yield
        finally:
            for layer in self._reserved:
                layer.place = None
        for layer in self._reserved:
            layer.holds(end)
