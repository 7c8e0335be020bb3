"""Muon for matrices and convolutions, Adam for everything else, in one optimizer object.

Muon (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982) replaces a matrix's momentum by its nearest
orthogonal matrix, found with a Newton-Schulz iteration. ``torch.optim.Muon`` takes only 2-D parameters and needs a
second optimizer for the rest; here a convolution's weight counts as the matrix ``[out, in*kernel]``, and one object
holds both rules, so that schedules, checkpoints and the Trainer see a single optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tokvid.errors import ConfigError, did_you_mean
from tokvid.runtime import has_bf16

Rule = Literal["muon", "adam"]

# The quintic's coefficients and the number of iterations of Jordan et al.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


# Matrices of one shape are orthogonalised together, up to this many numbers at once: one product of a batch is
# faster than many small ones, and copies of large matrices would cost memory for nothing.
_BATCH_NUMBERS = 1 << 22


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The nearest semi-orthogonal matrices of ``[N,rows,columns]``, roughly, computed in ``dtype``.

    Singular values land between about 0.7 and 1.2. Each matrix is treated as if it were alone.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    result = (matrices.mT if tall else matrices).to(dtype)
    result = result / (torch.linalg.matrix_norm(result, keepdim=True) + 1e-7)
    if dtype == torch.float32 and result.shape[2] >= 3 * result.shape[1]:
        result = _polynomial(result @ result.mT) @ result
    else:
        for _ in range(_ITERATIONS):
            gram = result @ result.mT
            result = torch.baddbmm(result, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), result, beta=_A)
    return (result.mT if tall else result).to(matrices.dtype)


def _polynomial(gram: Tensor) -> Tensor:
    """What all iterations together multiply a matrix ``X`` by, from ``gram`` = X Xᵀ ``[N,rows,rows]`` alone.

    Each multiplies by a polynomial p of the Gram matrix, which becomes p gram p: of wide matrices, as those of
    convolutions are, two products are over the columns and not ten. float32, in which small eigenvalues survive.
    """
    product: Tensor | None = None
    for iteration in range(_ITERATIONS):
        step = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        step.diagonal(dim1=1, dim2=2).add_(_A)
        product = step if product is None else step @ product
        if iteration + 1 < _ITERATIONS:
            gram = step @ gram @ step
    assert product is not None
    return product


class Muon(torch.optim.Optimizer):
    """Groups carry ``rule``: "muon" or "adam"; see :func:`muon_groups`. Weight decay is decoupled in both."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "rule": "muon",
        }
        super().__init__(groups, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; :class:`ConfigError` for an unknown rule and for a vector under Muon."""
        rule = param_group.get("rule", self.defaults["rule"])
        if rule not in get_args(Rule):
            raise ConfigError(f"unknown rule {rule!r} of a parameter group: {did_you_mean(str(rule), get_args(Rule))}")
        super().add_param_group(param_group)
        if rule == "muon" and any(parameter.ndim < 2 for parameter in self.param_groups[-1]["params"]):
            del self.param_groups[-1]
            raise ConfigError("Muon takes matrices and convolutions; give vectors a group with the rule 'adam'")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            if group["rule"] == "adam":
                for parameter in parameters:
                    self._adam(parameter, self.state[parameter], group)
            else:
                for batch in _of_one_shape(parameters):
                    self._muon(batch, group)
        return loss

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        directions = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            directions.append(parameter.grad.lerp(momentum, group["momentum"]).flatten(1))  # type: ignore[union-attr]
        # sqrt(max(1, rows/columns)) keeps the size of an update's effect equal for tall and wide matrices.
        scale = max(1.0, directions[0].shape[0] / directions[0].shape[1]) ** 0.5
        # bf16 is enough, but a processor without its instructions takes some forty times as long as in fp32.
        dtype = torch.bfloat16 if has_bf16(directions[0].device) else torch.float32
        for parameter, update in zip(parameters, orthogonalise(torch.stack(directions), dtype), strict=True):
            parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * scale)

    def _adam(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["step"] = 0
            state["first"], state["second"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        gradient: Tensor = parameter.grad  # type: ignore[assignment]
        state["first"].lerp_(gradient, 1 - beta1)
        state["second"].lerp_(gradient.square(), 1 - beta2)
        deviation = (state["second"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["first"], deviation, value=-group["lr"] / (1 - beta1 ** state["step"]))


def _of_one_shape(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Batches of equal shape, device and type, in the order in which the shapes come."""
    alike: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        alike.setdefault((parameter.shape, parameter.device, parameter.dtype), []).append(parameter)
    for same in alike.values():
        count = max(1, _BATCH_NUMBERS // same[0].numel())
        for start in range(0, len(same), count):
            yield same[start : start + count]


def muon_groups(model: nn.Module, *, lr: float, adam_lr: float, adam_names: Iterable[str]) -> list[dict[str, Any]]:
    """Two groups: matrices and convolutions under Muon at ``lr``, the rest under Adam at ``adam_lr``.

    A parameter whose dotted name has one of ``adam_names`` in it (embeddings, stems, heads) is Adam's too: Muon is
    for maps between hidden features. Each group's ``base_lr`` is what a schedule multiplies.
    """
    names = tuple(adam_names)
    muon: list[nn.Parameter] = []
    adam: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_map = parameter.ndim >= 2 and not any(part in name for part in names)
            (muon if is_map else adam).append(parameter)
    groups = [
        {"params": muon, "rule": "muon", "lr": lr, "base_lr": lr},
        {"params": adam, "rule": "adam", "lr": adam_lr, "base_lr": adam_lr},
    ]
    return [group for group in groups if group["params"]]
