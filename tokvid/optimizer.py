"""The optimizers a recipe can name, and the one schedule of their learning rates. They know no model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from tokvid.config_checks import at_least, finite, is_average, positive
from tokvid.muon import Muon, muon_groups


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """Muon for the maps between hidden features, Adam at ``adam_learning_rate`` for everything else.

    Rates are positive, the decay is not negative, ``momentum`` and both ``betas`` lie in [0, 1).
    """

    kind: Literal["muon"] = "muon"
    learning_rate: float = 0.02
    adam_learning_rate: float = 0.003
    weight_decay: float = 0.01
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        _check_rates(self, "learning_rate", "adam_learning_rate")
        is_average(self, "momentum", "betas")


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """torch's AdamW for every parameter; its settings have the bounds of :class:`MuonConfig`."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        _check_rates(self, "learning_rate")
        is_average(self, "betas")


OptimizerConfig = MuonConfig | AdamWConfig


def _check_rates(config: MuonConfig | AdamWConfig, *names: str) -> None:
    """The named learning rates and the weight decay are possible numbers, and finite."""
    positive(config, *names)
    at_least(config, 0, "weight_decay")
    finite(config, *names, "weight_decay")


def build_optimizer(
    config: OptimizerConfig,
    model: nn.Module,
    *,
    adam_names: Iterable[str] = (),
    undecayed: Iterable[str] = (),
    undecayed_rate: float = 1.0,
) -> torch.optim.Optimizer:
    """An optimizer over ``model``; every group has a ``base_lr`` for :func:`set_learning_rate`.

    ``adam_names`` are parts of the names of parameters that Muon leaves to Adam: embeddings, stems and heads.
    ``undecayed`` are names of parameters that AdamW does not decay, and whose rate is ``undecayed_rate`` times that of
    the others.
    """
    if isinstance(config, MuonConfig):
        groups = muon_groups(model, lr=config.learning_rate, adam_lr=config.adam_learning_rate, adam_names=adam_names)
        return Muon(
            groups,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            betas=config.betas,
        )
    kept = set(undecayed)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": [p for name, p in trained if name not in kept], "base_lr": config.learning_rate}]
    if kept:
        tables = [p for name, p in trained if name in kept]
        rate = undecayed_rate * config.learning_rate
        groups.append({"params": tables, "lr": rate, "base_lr": rate, "weight_decay": 0.0})
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def warmup_then_linear(step: int, *, warmup_steps: int, steps: int) -> float:
    """The share of the learning rate at ``step`` (from 0): a linear rise, then a linear fall to zero at ``steps``."""
    return min(1.0, (step + 1) / (warmup_steps + 1), (steps - step) / (steps - warmup_steps))


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take up the ``state_dict`` of an optimizer of the same parameters, each tensor in the layout of its parameter.

    torch leaves that to who saves, and its fused AdamW pairs numbers by their place in memory: an average that came
    back row by row, of a convolution whose channels are last, would move the wrong weights.
    """
    optimizer.load_state_dict(state)
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group to ``share`` of its ``base_lr``."""
    for group in optimizer.param_groups:
        group["lr"] = share * group["base_lr"]
