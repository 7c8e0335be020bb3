"""Memory that autograd keeps between a forward and a backward pass; also of fake tensors, which have no addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def kept_bytes(forward: Callable[[], object], *, inputs: Iterable[Tensor], own: Iterable[Tensor]) -> int:
    """Bytes that lie between the passes of ``forward``: its ``inputs`` and what it keeps, each storage once.

    What is ``own`` (parameters, buffers) lies there anyway and does not count.
    """
    kept = list(inputs)

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    there = {_storage(tensor) for tensor in own}
    sizes = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in kept}
    del result  # with what the list holds, until here: numbers of storages that are gone would be given again
    return sum(size for storage, size in sizes.items() if storage not in there)


def _storage(tensor: Tensor) -> int:
    """What tells storages apart while they live."""
    number: int = tensor.untyped_storage()._cdata
    return number
