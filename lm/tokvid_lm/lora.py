"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) in a language model that was extended with codes.

What the model knew is frozen: peft's adapters learn beside its linear layers, and of embedding and head the new rows,
which are a parameter of their own meanwhile, so that nothing is computed for the others. When training ends all of it
is put into the weights, so that what is saved is a plain model again.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokvid.config_checks import at_least, finite, is_average, positive
from tokvid.errors import ModelError
from tokvid_lm.head import NEW_ROWS, head_logits


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Adapters of ``rank`` in the linear layers named ``targets`` (none: in all but the head), scaled by alpha/rank.

    ``dropout`` in [0, 1) is of what goes into an adapter. The rows of new ids, which start as strangers, learn at
    ``rows_rate`` times the rate of the adapters.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    rows_rate: float = 1.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_least(self, 1, "rank")
        positive(self, "alpha", "rows_rate")
        finite(self, "alpha", "rows_rate")
        is_average(self, "dropout")


def insert_adapters(model: PreTrainedModel, config: LoRAConfig, *, first_new_row: int, seed: int = 0) -> None:
    """Freeze ``model`` but for new adapters and for the rows from ``first_new_row`` on of embedding and head.

    The same ``seed`` gives the same adapters. Raises :class:`ModelError` without peft, and for targets that the model
    lacks or that are its embedding or head, whose text rows an adapter would change.
    """
    try:
        import peft
        from peft.tuners.lora import Linear as LinearAdapter
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
    for module in model.modules():
        if isinstance(module, LinearAdapter):
            module.forward = partial(_adapted, module)  # type: ignore[method-assign]
    _split_tables(model, first_new_row)


def merge_adapters(model: PreTrainedModel) -> None:
    """Add every adapter to the weights beside it and take it out; all parameters can be trained again."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            layer: Any = module
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    _join_tables(model)
    model.requires_grad_(True)


def _adapted(layer: Any, features: Tensor) -> Tensor:
    """What peft's layer computes, without its ways to float32 and back under autocast."""
    (name,) = layer.active_adapters
    device = features.device.type
    if torch.is_autocast_enabled(device):
        features = features.to(torch.get_autocast_dtype(device))
    result: Tensor = layer.base_layer(features)
    low = layer.lora_A[name](layer.lora_dropout[name](features))
    high = layer.lora_B[name].weight.T
    return torch.addmm(result.flatten(0, -2), low.flatten(0, -2), high, alpha=layer.scaling[name]).view_as(result)


def _split_tables(model: PreTrainedModel, first: int) -> None:
    """Give embedding and head, tied or not, their rows from ``first`` on as a parameter of their own."""
    split: dict[int, nn.Parameter] = {}
    for module in _tables(model):
        weight = cast(Tensor, module.weight)
        if id(weight) in split:
            module.__dict__[NEW_ROWS] = split[id(weight)]  # seen, but not a second parameter
        else:
            split[id(weight)] = nn.Parameter(weight.detach()[first:].clone())
            module.register_parameter(NEW_ROWS, split[id(weight)])
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is not None:
        embedding.forward = partial(_embed, embedding, first)
    if isinstance(head, nn.Linear):
        head.forward = partial(_project, head)  # type: ignore[method-assign]


def _join_tables(model: PreTrainedModel) -> None:
    """The inverse of :func:`_split_tables`."""
    for module in _tables(model):
        rows, weight = getattr(module, NEW_ROWS), cast(Tensor, module.weight)
        with torch.no_grad():
            weight[len(weight) - len(rows) :] = rows
        delattr(module, NEW_ROWS)
        module.__dict__.pop("forward", None)


def _embed(embedding: nn.Module, first: int, ids: Tensor) -> Tensor:
    """What the embedding makes of ids, those from ``first`` on by its new rows."""
    new = copy.copy(embedding)  # whatever else an embedding does, scale its rows, say
    new._parameters = {"weight": embedding.get_parameter(NEW_ROWS)}
    new.padding_idx = None  # type: ignore[assignment]
    is_new = ids >= first
    forward = type(embedding).forward
    rows: Tensor = torch.where(
        is_new.unsqueeze(-1),
        forward(new, (ids - first).clamp_min(0)),
        forward(embedding, ids.masked_fill(is_new, 0)),
    )
    return rows


def _project(head: nn.Linear, hidden: Tensor) -> Tensor:
    """What the head makes of hidden states, for whoever wants all its columns."""
    return head_logits(head, hidden, 0, len(head.weight))


def _tables(model: PreTrainedModel) -> list[nn.Module]:
    """Embedding and head, those that there are."""
    found = (model.get_input_embeddings(), model.get_output_embeddings())
    return [module for module in found if module is not None]
