"""Our attention is torch's causal attention, forward and backward; what it cannot do it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.lm.tiny import build_model
from tokvid.errors import ModelError
from tokvid_lm.block_attention import BLOCK, block_attention, register


@pytest.mark.parametrize("length", [1, 5, BLOCK, BLOCK + 2, 2 * BLOCK + 44])
def test_it_is_causal_attention_and_so_is_its_gradient(length: int) -> None:
    torch.manual_seed(0)
    ours = [torch.randn(2, length, 3, 8).transpose(1, 2).requires_grad_() for _ in range(3)]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    expected = F.scaled_dot_product_attention(*theirs, is_causal=True)
    result = block_attention(*ours, 8**-0.5)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(expected)
    for mine, other in zip(
        torch.autograd.grad(result, ours, grad), torch.autograd.grad(expected, theirs, grad), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_a_model_with_grouped_heads_gives_the_same_logits_and_gradients() -> None:
    ids = torch.randint(0, 256, (2, 150))
    found = {}
    for name in ("sdpa", register()):
        model = build_model("llama")
        model.set_attn_implementation(name)
        logits = model(input_ids=ids, use_cache=False).logits
        logits.square().mean().backward()
        found[name] = [logits.detach(), *(p.grad for p in model.parameters())]
    for mine, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_under_autocast_it_is_close_to_torch() -> None:
    ids = torch.randint(0, 256, (2, 40))
    model = build_model("llama")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(input_ids=ids, use_cache=False).logits.float()
        model.set_attn_implementation(register())
        result = model(input_ids=ids, use_cache=False).logits.float()
    assert (result - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_what_it_cannot_do_it_refuses() -> None:
    windowed = build_model("mistral")
    windowed.set_attn_implementation(register())
    with pytest.raises(ModelError, match="asks for sliding_window; use sdpa"):
        windowed(input_ids=torch.randint(0, 256, (1, 30)))
    model = build_model("llama")
    model.set_attn_implementation(register())
    output = model(input_ids=torch.randint(0, 256, (1, 6)), use_cache=True)
    with pytest.raises(ModelError, match="a cache"):
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64), past_key_values=output.past_key_values)
