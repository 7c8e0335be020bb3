"""The output head of a model: whether it alone makes the logits, and only those columns of it that are wanted.

With text and codes in one vocabulary most columns of a softmax are of no use: a place of a video can only be a code of
its slot. So losses and samplers ask for a slice of the head's rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokvid.runtime import evaluation_mode

_PROBED = 1000.0
"""About the largest logit that a head is tried with: far beyond what soft caps let through."""


NEW_ROWS = "new_rows"
"""The name of the last rows of a head (or an embedding) while they alone are trained, beside its frozen weight."""


def head_rows(head: nn.Linear, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Rows ``[low, high)`` of the head's weight: those that are frozen, perhaps none, and those that follow them."""
    new: Tensor | None = getattr(head, NEW_ROWS, None)
    if new is None:
        return head.weight[:0].detach(), head.weight[low:high]
    first = len(head.weight) - len(new)
    frozen, last = head.weight[min(low, first) : min(high, first)], (max(low - first, 0), max(high - first, 0))
    return frozen.detach(), new[last[0] : last[1]]


def head_logits(head: nn.Linear, hidden: Tensor, low: int, high: int) -> Tensor:
    """Columns ``[low, high)`` of ``head(hidden)``, ``[..., high - low]``."""
    frozen, rows = head_rows(head, low, high)
    weight = torch.cat([frozen, rows]) if len(frozen) else rows
    return F.linear(hidden, weight, None if head.bias is None else head.bias[low:high])


@torch.no_grad()
def plain_head(model: PreTrainedModel) -> nn.Linear | None:
    """The output head, if it alone turns the last hidden states into the logits; found by trying.

    It is tried on hidden states that are scaled up: what a cap or a scale does to logits does not show in small ones.
    """
    head = model.get_output_embeddings()
    base = model.base_model
    if not isinstance(head, nn.Linear) or base is model:
        return None
    with evaluation_mode(model):
        ids = torch.arange(4, device=head.weight.device).unsqueeze(0)
        inside = getattr(base(input_ids=ids, use_cache=False), "last_hidden_state", None)
        if inside is None or inside.shape[-1] != head.in_features:
            return None
        factor = _PROBED / head(inside).abs().amax().clamp_min(1e-3)
        expected = head(inside * factor).float()
        with _scaled_inputs(head, factor):
            logits = model(input_ids=ids, use_cache=False).logits.float()
        alike = (expected - logits).abs() <= 1e-4 * expected.abs().amax()
        return head if bool(alike.all()) else None


def hidden_size(model: PreTrainedModel) -> int:
    """How many numbers a hidden state has."""
    return int(model.config.get_text_config(decoder=True).hidden_size)


@contextmanager
def _scaled_inputs(head: nn.Linear, factor: Tensor) -> Iterator[None]:
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * factor,))
    try:
        yield
    finally:
        handle.remove()
