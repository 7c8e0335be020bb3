"""Cross-entropy of scored positions over some columns of a head, without ever holding all their logits.

The head is applied a few rows at a time, and the gradient is taken in the same pass, so that a chunk of logits lives in
the cache and is gone. This knows nothing of batches, modes or the Trainer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokvid_lm.head import head_rows

CPU_CHUNK, DEVICE_CHUNK = 1 << 21, 1 << 26
"""Logits held at a time: what the cache of a processor holds, and what a device keeps busy with."""
LEAST_ROWS = 128
"""Of a chunk: each goes over the whole gradient of the columns, and must be worth its while where they are many."""


def head_cross_entropy(
    hidden: Tensor,
    head: nn.Linear,
    targets: Tensor,
    weights: Tensor,
    *,
    columns: tuple[int, int] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """``(sum of weights * losses, nats)`` of ``head(hidden)``; softmax in float32.

    ``hidden`` ``[n,D]``, ``targets`` int64 ``[n]`` and ``weights`` float32 ``[n]``. Only ``columns`` (low, high) of the
    head compete, as if all other logits were minus infinity (None: all); targets lie in them. The loss of a row is its
    cross-entropy with ``label_smoothing`` (that share of the target is spread over all columns), plus ``z_loss`` times
    the square of the log of the softmax's sum, which keeps logits from drifting (Chowdhery et al. 2022, arXiv
    2204.02311). ``nats`` ``[n]``, without gradient, are the plain cross-entropies. Gradients reach hidden, the head's
    weight and its bias, under autocast too.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    low, high = columns or (0, len(head.weight))
    bias = None if head.bias is None else head.bias[low:high]
    loss, nats = _HeadCrossEntropy.apply(
        hidden,
        *head_rows(head, low, high),
        bias,
        targets - low,
        weights,
        (dtype, torch.is_grad_enabled(), label_smoothing, z_loss),
    )
    return loss, nats


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        frozen: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        settings: tuple[torch.dtype | None, bool, float, float],
    ) -> tuple[Tensor, Tensor]:
        dtype, wants_gradients, smoothing, z_loss = settings
        rows, columns = hidden.to(dtype or hidden.dtype), weight.to(dtype or weight.dtype)
        if len(frozen):
            columns = torch.cat([frozen.to(columns.dtype), columns])
        losses, nats = torch.empty(2, len(rows), dtype=torch.float32, device=rows.device)
        grad_rows = torch.empty_like(rows) if wants_gradients and hidden.requires_grad else None
        grad_columns = (
            torch.zeros_like(weight, dtype=torch.float32) if wants_gradients and weight.requires_grad else None
        )
        grad_bias = None if bias is None or not wants_gradients else torch.zeros_like(bias, dtype=torch.float32)
        limit = CPU_CHUNK if rows.device.type == "cpu" else DEVICE_CHUNK
        chunk = max(LEAST_ROWS, limit // len(columns))
        with torch.autocast(rows.device.type, enabled=False):
            for start in range(0, len(rows), chunk):
                part = slice(start, start + chunk)
                logits = F.linear(rows[part], columns, bias.to(columns.dtype) if bias is not None else None).float()
                wanted, count = targets[part], torch.arange(len(logits), device=logits.device)
                top = logits.amax(1)
                margin = (top - logits[count, wanted]).clone()
                spread = top - logits.mean(1) if smoothing else margin
                # In place from here on: the exponentials are the softmax but for their sum, and then its gradient.
                total = logits.sub_(top.unsqueeze(1)).exp_().sum(1)
                log_total = total.log()
                log_sum = log_total + top
                nats[part] = log_total + margin
                # Of the smoothed target a share is spread over all columns, whose mean loss it pays.
                losses[part] = log_total + margin + smoothing * (spread - margin) + z_loss * log_sum.square()
                if grad_rows is None and grad_columns is None:
                    continue
                share = weights[part] * (1.0 + 2.0 * z_loss * log_sum) / total
                gradient = logits.mul_(share.unsqueeze(1))
                gradient[count, wanted] -= weights[part] * (1.0 - smoothing)
                if smoothing:
                    gradient -= (weights[part] * smoothing / len(columns)).unsqueeze(1)
                if grad_bias is not None:
                    grad_bias += gradient.sum(0)
                gradient = gradient.to(rows.dtype)
                if grad_rows is not None:
                    torch.mm(gradient, columns, out=grad_rows[part])
                of_trained = gradient[:, len(frozen) :].T
                if grad_columns is not None and grad_columns.dtype == rows.dtype:
                    grad_columns.addmm_(of_trained, rows[part])
                elif grad_columns is not None:
                    grad_columns += of_trained @ rows[part]
        ctx.save_for_backward(grad_rows, grad_columns, grad_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, bias.dtype if bias is not None else None)
        ctx.mark_non_differentiable(nats)
        return (losses * weights).sum(), nats

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = (
            grad if grad is None else (grad * grad_loss).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        of_hidden, of_weight, of_bias = grads
        return of_hidden, None, of_weight, of_bias, None, None, None
