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

from tokvid.runtime import check_compiles
from tokvid_lm.layer_forwards import other_forwards


@contextmanager
def compiled_layers(model: PreTrainedModel) -> Iterator[None]:
    """Train ``model`` through compiled layers; :class:`~tokvid.errors.ConfigError` where none can be compiled."""
    setting = "training.compile"
    with other_forwards(model, lambda layer: functools.partial(_forward, layer), setting=setting):
        check_compiles(model.device, f"leave {setting} out")
        yield


def _forward(layer: nn.Module, *arguments: Any, **named: Any) -> Any:
    forward = type(layer).forward
    compute = _program(forward) if torch.is_grad_enabled() else forward
    return compute(layer, *arguments, **named)


@functools.cache
def _program(forward: Callable[..., Any]) -> Callable[..., Any]:
    """One for all layers of a class."""
    return torch.compile(forward, dynamic=False)
