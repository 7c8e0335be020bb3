"""A model whose weights ZeRO 3 has cut up among processes, whole again."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokvid.deepspeed_config import import_deepspeed
from tokvid.errors import ModelError


def gathered(model: PreTrainedModel) -> PreTrainedModel:
    """A plain copy of ``model`` where it is; all processes must ask together, and each gets it.

    One parameter at a time is put together, so that no process holds more than the copy and the largest of them.
    """
    zero = import_deepspeed().zero
    with torch.device("meta"):
        plain: PreTrainedModel = type(model)(copy.deepcopy(model.config))
    whole: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        with zero.GatheredParameters([parameter]):
            whole[name] = parameter.detach().clone()
    plain.load_state_dict(whole | dict(model.named_buffers()), strict=False, assign=True)
    # Buffers that are not saved, frequencies of positions say, are in no state.
    for name, buffer in model.named_buffers():
        owner, _, own_name = name.rpartition(".")
        plain.get_submodule(owner)._buffers[own_name] = buffer
    plain.tie_weights()
    empty = [name for name, tensor in plain.named_parameters() if tensor.is_meta]
    if empty:
        raise ModelError(f"{type(model).__name__} lacks {', '.join(empty)} after ZeRO 3: use stage 2")
    plain.generation_config = model.generation_config
    return plain.requires_grad_(True)
