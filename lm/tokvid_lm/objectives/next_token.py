"""Next-token prediction: cross-entropy of the scored positions, without ever holding all their logits.

The head is applied to scored positions only, a few rows at a time, and the gradient is taken in the same pass, so
that a chunk of logits lives in the cache and is gone. This knows nothing of batches, schedules or the Trainer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokvid_lm.collate import IGNORED

CPU_CHUNK, DEVICE_CHUNK = 1 << 21, 1 << 26
"""Logits held at a time: what the cache of a processor holds, and what a device keeps busy with."""
_PROBED = 1000.0
"""About the largest logit that a head is tried with: far beyond what soft caps let through."""


class NextTokenObjective:
    """Called with a batch it answers with its loss, and with what the log says about codes and text.

    ``code_offset`` is the first id of a code. A text label counts ``text_weight`` against a code. A model whose
    logits are more than its head (soft capping, say) is asked for all its logits instead.
    """

    def __init__(self, model: PreTrainedModel, *, code_offset: int, text_weight: float = 1.0) -> None:
        self.model = model
        self.code_offset = code_offset
        self.text_weight = text_weight
        self.head = _plain_head(model)
        self._logits_of = model.forward

    def __call__(self, input_ids: Tensor, labels: Tensor, num_items: Tensor | int | None = None) -> dict[str, Tensor]:
        """``loss``: the weighted sum over scored labels by ``num_items`` (default: their number in this batch).

        ``labels`` are not shifted: position i is predicted from what stands before it. Also ``code_nats`` and
        ``text_nats``, float64 sums of the losses in nats, and ``code_count`` and ``text_count``.
        """
        targets = labels[:, 1:]
        scored = (targets != IGNORED).flatten().nonzero().squeeze(1)
        wanted = targets.flatten()[scored]
        is_code = wanted >= self.code_offset
        weights = torch.where(is_code, 1.0, self.text_weight) / (wanted.numel() if num_items is None else num_items)
        inputs = {"input_ids": input_ids[:, :-1], "use_cache": False}
        if self.head is not None:
            hidden = self.model.base_model(**inputs).last_hidden_state.flatten(0, 1).index_select(0, scored)
            loss, nats = head_cross_entropy(hidden, self.head, wanted, weights)
        else:
            logits = self._logits_of(**inputs).logits.flatten(0, 1).index_select(0, scored)
            each = F.cross_entropy(logits.float(), wanted, reduction="none")
            loss, nats = (each * weights).sum(), each.detach()
        return {
            "loss": loss,
            "code_nats": (nats * is_code).sum(dtype=torch.float64),
            "text_nats": (nats * ~is_code).sum(dtype=torch.float64),
            "code_count": is_code.sum(),
            "text_count": (~is_code).sum(),
        }

    @contextmanager
    def as_forward(self) -> Iterator[None]:
        """Inside, calling the model is calling this: what wraps a model (DDP, DeepSpeed) wraps the loss too."""
        self.model.forward = self
        try:
            yield
        finally:
            # Accelerate may have put its own wrapper there; the class has the plain one.
            self.model.__dict__.pop("forward", None)
            self.model.__dict__.pop("_original_forward", None)


def head_cross_entropy(hidden: Tensor, head: nn.Linear, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """``(sum of weights * losses, losses)`` of ``head(hidden)``; softmax in float32.

    ``hidden`` ``[n,D]``, ``targets`` int64 ``[n]``, ``weights`` float32 ``[n]``; the losses ``[n]`` carry no gradient.
    Gradients reach hidden, the head's weight and its bias, under autocast too.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    loss, nats = _HeadCrossEntropy.apply(
        hidden, head.weight, head.bias, targets, weights, dtype, torch.is_grad_enabled()
    )
    return loss, nats


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        dtype: torch.dtype | None,
        wants_gradients: bool,
    ) -> tuple[Tensor, Tensor]:
        rows, columns = hidden.to(dtype or hidden.dtype), weight.to(dtype or weight.dtype)
        nats = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
        grad_rows = torch.empty_like(rows) if wants_gradients and hidden.requires_grad else None
        grad_columns = (
            torch.zeros_like(weight, dtype=torch.float32) if wants_gradients and weight.requires_grad else None
        )
        grad_bias = None if bias is None or not wants_gradients else torch.zeros_like(bias, dtype=torch.float32)
        limit = CPU_CHUNK if rows.device.type == "cpu" else DEVICE_CHUNK
        chunk = max(16, limit // len(columns))
        with torch.autocast(rows.device.type, enabled=False):
            for start in range(0, len(rows), chunk):
                part = slice(start, start + chunk)
                logits = F.linear(rows[part], columns, bias.to(columns.dtype) if bias is not None else None).float()
                wanted, count = targets[part], torch.arange(len(logits), device=logits.device)
                top = logits.amax(1, keepdim=True)
                margin = (top.squeeze(1) - logits[count, wanted]).clone()
                # In place from here on: the exponentials are the softmax but for their sum, and then its gradient.
                total = logits.sub_(top).exp_().sum(1)
                nats[part] = total.log() + margin
                if grad_rows is None and grad_columns is None:
                    continue
                gradient = logits.mul_((weights[part] / total).unsqueeze(1))
                gradient[count, wanted] -= weights[part]
                if grad_bias is not None:
                    grad_bias += gradient.sum(0)
                gradient = gradient.to(rows.dtype)
                if grad_rows is not None:
                    torch.mm(gradient, columns, out=grad_rows[part])
                if grad_columns is not None:
                    grad_columns += gradient.T @ rows[part]
        ctx.save_for_backward(grad_rows, grad_columns, grad_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, bias.dtype if bias is not None else None)
        ctx.mark_non_differentiable(nats)
        return (nats * weights).sum(), nats

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = (
            grad if grad is None else (grad * grad_loss).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*grads, None, None, None, None)


@torch.no_grad()
def _plain_head(model: PreTrainedModel) -> nn.Linear | None:
    """The output head, if it alone turns the last hidden states into the logits; found by trying.

    It is tried on hidden states that are scaled up: what a cap or a scale does to logits does not show in small ones.
    """
    head = model.get_output_embeddings()
    base = model.base_model
    if not isinstance(head, nn.Linear) or base is model:
        return None
    was_training = model.training
    model.eval()
    try:
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
    finally:
        model.train(was_training)


@contextmanager
def _scaled_inputs(head: nn.Linear, factor: Tensor) -> Iterator[None]:
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * factor,))
    try:
        yield
    finally:
        handle.remove()
