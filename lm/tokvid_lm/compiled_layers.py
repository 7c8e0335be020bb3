"""torch.compile for the layers of a language model in training, one after the other; what they hold stays as it is.

Layers of equal shapes share a program, so that one is made and not as many as there are layers. Without gradients
they compute as they are: a validation has other shapes, and each would be compiled for itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tokvid.errors import ConfigError
from tokvid.runtime import check_compiles


@contextmanager
def compiled_layers(model: PreTrainedModel) -> Iterator[None]:
    """Train ``model`` through compiled layers. Raises :class:`ConfigError` where nothing can be compiled."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(f"{type(model).__name__} has no layers to compile: leave training.compile out")
    check_compiles(model.device, "leave training.compile out")
    for layer in layers:
        layer.forward = functools.partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: nn.Module, *arguments: Any, **named: Any) -> Any:
    forward = type(layer).forward
    compute = _program(forward) if torch.is_grad_enabled() else forward
    return compute(layer, *arguments, **named)


@functools.cache
def _program(forward: Callable[..., Any]) -> Callable[..., Any]:
    """One for all layers of a class."""
    return torch.compile(forward, dynamic=False)
