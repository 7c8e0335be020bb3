"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) in a language model that was extended with codes.

What the model knew is frozen: peft's adapters learn beside its linear layers, and of embedding and head the new rows.
When training ends the adapters are added to the weights, so that what is saved is a plain model again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokvid.config_checks import at_least, is_average, positive
from tokvid.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Adapters of ``rank`` in the linear layers named ``targets`` (none: in all but the head), scaled by alpha/rank.

    ``dropout`` in [0, 1) is of what goes into an adapter.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_least(self, 1, "rank")
        positive(self, "alpha")
        is_average(self, "dropout")


def insert_adapters(model: PreTrainedModel, config: LoRAConfig, *, first_new_row: int, seed: int = 0) -> None:
    """Freeze ``model`` but for new adapters and for the rows from ``first_new_row`` on of embedding and head.

    Whoever trains must not decay those tables: the gradient of the other rows is zero, a decay would not be. The same
    ``seed`` gives the same adapters. Raises :class:`ModelError` without peft, and for targets that the model lacks
    or that are its embedding or head, whose text rows an adapter would change.
    """
    try:
        import peft
        from peft.tuners.lora import LoraLayer
    except ImportError as error:
        raise ModelError("adapters (lora) need peft: pip install 'tokvid[peft]'") from error
    model.requires_grad_(False)
    adapters = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=list(config.targets) or "all-linear",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(adapters, model)
        except ValueError as error:
            raise ModelError(f"lora targets {list(config.targets)}: {error}") from error
    if any(isinstance(module, LoraLayer) for module in (model.get_input_embeddings(), model.get_output_embeddings())):
        raise ModelError(
            f"lora targets {list(config.targets)} name the embedding or the head, whose text rows stay as they are:"
            " leave them out"
        )
    for table in _tables(model):
        table.requires_grad_(True)
        table.register_hook(lambda gradient: _only_from(gradient, first_new_row))


def merge_adapters(model: PreTrainedModel) -> None:
    """Add every adapter to the weights beside it and take it out; all parameters can be trained again."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            layer: Any = module
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    for table in _tables(model):
        hooks = table._backward_hooks
        if hooks is not None:
            hooks.clear()
    model.requires_grad_(True)


def _tables(model: PreTrainedModel) -> list[nn.Parameter]:
    """The weights of embedding and head, one if they are tied."""
    found: dict[int, nn.Parameter] = {}
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None:
            weight: Any = module.weight
            found[id(weight)] = weight
    return list(found.values())


def _only_from(gradient: Tensor, row: int) -> Tensor:
    kept = gradient.clone()
    kept[:row] = 0
    return kept
