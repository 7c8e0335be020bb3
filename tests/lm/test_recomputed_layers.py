"""Layers that are computed again: the same loss and gradients, less between the passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.lm.tiny import FAMILIES, build_model
from tests.lm.tiny_run import recipe, train
from tokvid.errors import ConfigError
from tokvid_lm.recomputed_layers import recomputed_layers
from tokvid_tokenizers import VideoCodec


def passes(model: PreTrainedModel) -> tuple[list[Tensor], int]:
    """The gradients of a sum of hidden states, and how many bytes were kept for them beside parameters."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    ids = torch.arange(48)[None] % 200
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    hidden.square().sum().backward()
    gradients = [parameter.grad for parameter in model.base_model.parameters() if parameter.grad is not None]
    return gradients, sum(kept.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradients_stay_and_less_is_kept(family: str) -> None:
    model = build_model(family).train()
    expected, before = passes(model)
    with recomputed_layers(model):
        found, kept = passes(model)
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other)
    assert kept < before / 2
    assert passes(model)[1] == before, "outside everything is as it was"


def test_a_run_gives_the_same_model_with_it(codec: VideoCodec, tmp_path: Path) -> None:
    plain = train(recipe(tmp_path / "plain", steps=3), codec).lm.model.state_dict()
    again = train(recipe(tmp_path / "again", steps=3, checkpoint_layers=True), codec).lm.model.state_dict()
    for name, tensor in plain.items():
        torch.testing.assert_close(again[name], tensor)


def test_a_model_without_layers_is_refused() -> None:
    model: Any = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"no layers that .*: leave training\.checkpoint_layers out"):
        recomputed_layers(model).__enter__()
