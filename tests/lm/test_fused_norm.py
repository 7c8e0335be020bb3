"""The fused RMSNorm against the one of transformers: values, gradients, types, and what is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from tokvid_lm.fused_norm import fused_norms


def norm(kind: type[nn.Module] = LlamaRMSNorm, width: int = 24) -> nn.Module:
    torch.manual_seed(0)
    made = kind(width, eps=1e-5)
    nn.init.normal_(made.weight)
    return made


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_values_and_gradients_are_those_of_transformers(kind: type[nn.Module], size: float) -> None:
    module = norm(kind)
    theirs = (torch.randn(3, 5, 24) * size).requires_grad_()
    ours = theirs.detach().clone().requires_grad_()
    upstream = torch.randn(3, 5, 24)
    expected = module(theirs)
    expected.backward(upstream)
    weight_grad = module.weight.grad.clone()
    module.weight.grad = None
    with fused_norms(module):
        result = module(ours)
    result.backward(upstream)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(module.weight.grad, weight_grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_result_has_its_type_and_the_gradient_that_of_the_input(dtype: torch.dtype) -> None:
    module, features = norm(), torch.randn(2, 24, dtype=dtype, requires_grad=True)
    with fused_norms(module), torch.autocast("cpu", torch.bfloat16):
        result = module(features)
    result.float().sum().backward()
    assert result.dtype == torch.bfloat16
    assert features.grad is not None and features.grad.dtype == dtype and module.weight.grad.dtype == torch.float32
    torch.testing.assert_close(result.float(), module(features.float()), atol=0.05, rtol=0.02)


def test_a_model_has_its_own_norms_back_afterwards_and_others_are_left_alone() -> None:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen3Config(vocab_size=20, num_hidden_layers=1, head_dim=8, **shape)
    model, ids = Qwen3ForCausalLM(config).eval(), torch.arange(6).unsqueeze(0)
    before = model(ids).logits
    with pytest.raises(RuntimeError, match="stop"), fused_norms(model):
        assert sum("forward" in vars(module) for module in model.modules()) == 5  # two a layer, q, k and the last
        torch.testing.assert_close(model(ids).logits, before)
        raise RuntimeError("stop")
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(model(ids).logits, before)
    gemma = GemmaRMSNorm(8)
    with fused_norms(gemma):
        assert "forward" not in vars(gemma)
