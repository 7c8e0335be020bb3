"""Nested training state as flat tensors plus JSON, and back exactly.

``optimizer.state_dict()`` and random generator states are dictionaries of dictionaries with integer keys, tuples,
tensors and numbers. :func:`pack` takes the tensors out, under names that follow their place, and writes the
rest as JSON-able values; :func:`unpack` is its inverse. Tensors that share memory come back as copies. No
pickle, so that reading a state never runs code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tokvid.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# The one key that marks a value JSON has no word for; a plain mapping that uses it is packed as pairs.
MARK = "__kind__"


@dataclass(frozen=True)
class PackedState:
    """``tensors`` by name and a JSON-able ``tree`` that refers to them."""

    tensors: dict[str, Tensor]
    tree: Any


def pack(state: Any) -> PackedState:
    """Split ``state`` into tensors and a JSON-able tree.

    It may hold mappings, lists, tuples, numbers, strings, None, tensors and arrays; anything else raises
    CheckpointError, which names the place.
    """
    tensors: dict[str, Tensor] = {}
    return PackedState(tensors, _pack(state, "state", tensors))


def unpack(packed: PackedState) -> Any:
    """The inverse of :func:`pack`; raises CheckpointError when a tensor is missing."""
    return _unpack(packed.tree, packed.tensors)


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    import torch

    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor):
        tensors[place] = value
        return {MARK: "tensor", "name": place}
    if isinstance(value, np.ndarray):
        tensors[place] = torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape).copy())
        return {MARK: "array", "name": place}
    if type(value) in (list, tuple):
        items = [_pack(item, f"{place}.{i}", tensors) for i, item in enumerate(value)]
        return items if type(value) is list else {MARK: "tuple", "items": items}
    if isinstance(value, Mapping):
        if all(type(key) is str for key in value) and MARK not in value:
            return {key: _pack(item, f"{place}.{key}", tensors) for key, item in value.items()}
        return {MARK: "pairs", "pairs": [_pack_pair(k, v, place, tensors) for k, v in value.items()]}
    raise CheckpointError(
        f"'{place}' is a {type(value).__name__}, which a checkpoint cannot hold:"
        " use numbers, strings, lists, mappings and tensors"
    )


def _pack_pair(key: Any, value: Any, place: str, tensors: dict[str, Tensor]) -> list[Any]:
    if key is not None and type(key) not in (bool, int, float, str):
        raise CheckpointError(f"'{place}' has the key {key!r}: a checkpoint's keys are strings and numbers")
    # repr, so that the keys 1 and "1" of one mapping get two names
    return [key, _pack(value, f"{place}.{key if type(key) is int else repr(key)}", tensors)]


def _unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kind = tree.get(MARK)
    if kind is None:
        return {key: _unpack(item, tensors) for key, item in tree.items()}
    if kind == "pairs":
        return {key: _unpack(item, tensors) for key, item in tree["pairs"]}
    if kind == "tuple":
        return tuple(_unpack(item, tensors) for item in tree["items"])
    if tree["name"] not in tensors:
        raise CheckpointError(f"the checkpoint lacks the tensor '{tree['name']}'")
    tensor = tensors[tree["name"]]
    return tensor.numpy() if kind == "array" else tensor
