"""RMSNorm for training on a processor in bf16: half the passes over memory, and one result for all that read it.

The modules of transformers make a tensor of each step and answer in float32, which every linear layer behind them
casts anew. Small models on a processor spend a good part of a step there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

# Gemma's, say, adds one to its weight.
_NORMS = (LlamaRMSNorm, Qwen3RMSNorm)


def rms_norm(features: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``features * weight / sqrt(mean(features^2) + eps)`` over the last dimension, computed in float32.

    Under autocast the result has autocast's type, else that of ``features`` (Zhang and Sennrich 2019).
    """
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
    result: Tensor = _RMSNorm.apply(features, weight, eps, dtype)
    return result


def has_fused_norms(model: nn.Module) -> bool:
    """Whether ``model`` has norms that :func:`fused_norms` is for."""
    return any(isinstance(module, _NORMS) for module in model.modules())


@contextmanager
def fused_norms(model: nn.Module) -> Iterator[None]:
    """Compute the RMSNorms that Llama and its kin have by :func:`rms_norm`; what they hold stays as it is."""
    changed = [module for module in model.modules() if isinstance(module, _NORMS)]
    for module in changed:
        module.forward = partial(_forward, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _forward(module: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, module.weight, module.variance_epsilon)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = features.float()
        mean_square = torch.linalg.vecdot(wide, wide).div_(wide.shape[-1])
        rate = torch.rsqrt(mean_square.add_(eps)).unsqueeze(-1)
        normed = wide * rate
        result = torch.empty_like(normed, dtype=dtype)
        torch.mul(normed, weight, out=result)
        ctx.save_for_backward(normed, rate, weight)
        ctx.dtype = features.dtype
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normed, rate, weight = ctx.saved_tensors
        grad = grad.float()
        grad_weight = (grad * normed).flatten(0, -2).sum(0)
        grad_normed = grad * weight
        along = torch.linalg.vecdot(grad_normed, normed).div_(normed.shape[-1]).unsqueeze(-1)
        grad_features = grad_normed.addcmul_(normed, along, value=-1.0).mul_(rate)
        return grad_features.to(ctx.dtype), grad_weight, None, None
