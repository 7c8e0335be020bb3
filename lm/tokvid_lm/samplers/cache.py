"""A key-value cache that writes in place.

``DynamicCache`` copies all it holds at every step; with the length known beforehand, the buffers are made once.
Layers that are not plain full attention (sliding windows, say) stay what transformers made them.
"""

from __future__ import annotations

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

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values ``[rows, heads, n, head size]`` and return all there are."""
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

    def _reserve(self, key_states: Tensor, value_states: Tensor, capacity: int) -> None:
        held = self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        buffers = []
        for states, old in ((key_states, self.keys), (value_states, self.values)):
            rows, heads, _, size = states.shape
            buffer = states.new_empty(rows, heads, capacity, size, dtype=self.stored_as)
            if held and old is not None:
                buffer[..., :held, :] = old
            buffers.append(buffer)
        self._buffers = (buffers[0], buffers[1])
        self.capacity = capacity


def reserve_cache(config: PreTrainedConfig, capacity: int, *, stored_as: torch.dtype | None = None) -> DynamicCache:
    """An empty cache for one generation of at most ``capacity`` positions, prompt included.

    ``stored_as``: the type of autocast, if it is on.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        ReservedLayer(capacity, stored_as) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
