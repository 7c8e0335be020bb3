"""Classifier-free guidance: ``u + g*(c - u)`` on logits or velocities. 1.0 is off; 0.0 is the unconditional model."""

from __future__ import annotations

from torch import Tensor

from tokvid.errors import ModelError


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Combine what a model says with and without its condition; at a ``scale`` of 1.0 the first comes back bit for bit.

    A tensor of scales has the shape of what is guided, or one that broadcasts to it.
    """
    if conditional.shape != unconditional.shape:
        raise ModelError(
            f"guidance needs tensors of one shape, got {list(conditional.shape)} and {list(unconditional.shape)}"
        )
    if not isinstance(scale, Tensor) and scale == 1.0:
        return conditional
    return unconditional + scale * (conditional - unconditional)
