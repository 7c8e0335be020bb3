"""Weights that may be saved, and what tells them apart. It knows no model: weights are tensors by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tokvid.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor


def check_weights(step: int, weights: Mapping[str, Tensor]) -> None:
    """Raise :class:`TrainingError` naming the first of ``weights`` that is not finite.

    The loss of a step is that of the weights before it, so it does not speak for what is about to be saved.
    """
    for name, weight in weights.items():
        if not bool(weight.isfinite().all()):
            raise TrainingError(
                f"step {step}: the weight '{name}' is no longer finite, although the loss was; the last checkpoint is"
                " untouched: start a new run with a lower learning rate"
            )


def digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """64 hexadecimal digits of all values of ``weights``, in their order."""
    digest = hashlib.sha256()
    for tensor in weights.values():
        digest.update(tensor.float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
