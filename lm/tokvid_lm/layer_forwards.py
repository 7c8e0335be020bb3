"""The layers of a language model computed in another way for a while; what they hold stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tokvid.errors import ConfigError

Forward = Callable[..., Any]


@contextmanager
def other_forwards(model: PreTrainedModel, other: Callable[[nn.Module], Forward], *, setting: str) -> Iterator[None]:
    """Inside, every layer computes by ``other(layer)``, which may call what the layer computed by before.

    Raises :class:`ConfigError` for a model without layers of transformers' kind, naming the ``setting`` to leave out.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(f"{type(model).__name__} has no layers that can be computed otherwise: leave {setting} out")
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = other(layer)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
