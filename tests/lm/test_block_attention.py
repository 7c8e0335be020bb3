"""Our attention is torch's, causal or masked, forward and backward; what it cannot do it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.lm.masks import document, mixed, odd_specs, slowly, spec_of, specs
from tests.lm.tiny import FAMILIES, build_model
from tokvid.errors import ModelError
from tokvid_lm.block_attention import BLOCK, CompiledMask, block_attention, compile_mask, register
from tokvid_lm.mask_spec import MaskSpec, mask_for


def seen_by(mask: CompiledMask) -> Tensor:
    """What a compiled mask lets be seen, bool ``[B,1,S,S]``."""
    seen = torch.zeros(mask.rows, 1, mask.length, mask.length, dtype=torch.bool)
    for block in mask.blocks:
        keys = torch.cat([torch.arange(start, stop) for start, stop in block.keys])
        part = torch.ones(block.stop - block.start, len(keys), dtype=torch.bool)
        if block.hidden is not None:
            part[:, block.offset : block.offset + block.hidden.shape[1]] = ~block.hidden
        assert not seen[block.row, 0, block.start : block.stop].any(), "a query in two blocks"
        seen[block.row, 0, block.start : block.stop, keys] = part
    return seen


def both_ways(spec: MaskSpec, mask: CompiledMask, heads: int = 2, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    """The result and the three gradients of ours and of torch's attention, as transformers lays tensors out."""
    rows, length = spec.order.shape
    generator = torch.Generator().manual_seed(0)
    ours = [
        torch.randn(rows, length, heads, size, generator=generator).transpose(1, 2).requires_grad_() for _ in range(3)
    ]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    expected = F.scaled_dot_product_attention(*theirs, attn_mask=spec.to_bool())
    result = block_attention(*ours, size**-0.5, mask)
    grad = torch.randn(expected.shape, generator=generator)
    mine, others = torch.autograd.grad(result, ours, grad), torch.autograd.grad(expected, theirs, grad)
    return list(zip((result, *mine), (expected, *others), strict=True))


@settings(max_examples=60, deadline=None)
@given(spec=specs() | odd_specs(), size=st.sampled_from([1, 4, 7, 128]))
def test_a_compiled_mask_is_the_rule_and_skips_what_nobody_sees(spec: MaskSpec, size: int) -> None:
    mask = compile_mask(spec, size=size)
    expected = slowly(spec)
    assert torch.equal(seen_by(mask), expected)
    for block in mask.blocks:
        assert block.stop - block.start <= 2 * size
        for start, stop in block.keys:
            assert expected[block.row, 0, block.start : block.stop, start:stop].any(0).all()
        if block.hidden is not None:
            assert block.hidden[:, [0, -1]].any(0).all()


@settings(max_examples=40, deadline=None)
@given(spec=specs() | odd_specs(), size=st.sampled_from([4, 128]))
def test_masked_it_is_torchs_attention_and_so_is_its_gradient(spec: MaskSpec, size: int) -> None:
    for mine, other in both_ways(spec, compile_mask(spec, size=size)):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_long_rows_of_every_kind_are_torchs_too() -> None:
    rows = [
        [document(40, 3, 64, "frame", after=9), document(20, 2, 100, "causal"), document(30, 2, 90, "full")],
        [document(25, 4, 36, "frame", copies=True, after=5), document(200, 0, 1, "causal")],
    ]
    spec = spec_of(rows, length=640)
    mask = compile_mask(spec)
    assert torch.equal(seen_by(mask), spec.to_bool())
    for mine, other in both_ways(spec, mask):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_whole_frames_want_no_mask() -> None:
    """Blocks are cut where frames begin, so that all queries of one see the same."""
    spec = spec_of([[document(0, 6, 64, "frame")], [document(0, 1, 384, "full")]])
    mask = compile_mask(spec)
    assert [block.hidden for block in mask.blocks if block.row == 1] == [None] * 3
    frames = [block for block in mask.blocks if block.row == 0]
    assert all(block.start % 64 == 0 for block in frames)
    whole = compile_mask(spec, size=64)
    assert all(block.hidden is None for block in whole.blocks)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_sees_the_mask_again(family: str, reentrant: bool) -> None:
    spec = mixed()
    ids = torch.randint(0, 256, spec.order.shape, generator=torch.Generator().manual_seed(2))
    found: list[list[Tensor]] = []
    for name, again in [("sdpa", False), (register(), False), (register(), True)]:
        model = build_model(family).train()
        model.set_attn_implementation(name)
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        logits = model(input_ids=ids, use_cache=False, **mask_for(model, spec, spec.order)).logits
        if again:  # another call with another mask, before the backward pass of this one
            other = MaskSpec.packed_causal([[3, 20], [9]], length=ids.shape[1])
            model(input_ids=ids, use_cache=False, **mask_for(model, other))
        logits.square().mean().backward()
        found.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for mine in found[1:]:
        for ours, other_way in zip(mine, found[0], strict=True):
            torch.testing.assert_close(ours, other_way, rtol=1e-3, atol=2e-5)


def test_under_autocast_a_mask_is_close_to_torch_too() -> None:
    spec = mixed()
    ids = torch.randint(0, 256, spec.order.shape)
    model = build_model("llama")
    found = {}
    for name in ("sdpa", register()):
        model.set_attn_implementation(name)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False, **mask_for(model, spec, spec.order)).logits
        logits.float().square().mean().backward()
        weight = model.model.layers[0].self_attn.q_proj.weight
        assert weight.grad is not None
        found[name] = [logits.detach().float(), weight.grad.clone()]
    for mine, other in zip(*found.values(), strict=True):
        assert (mine - other).abs().mean() < 0.03 * other.abs().mean()


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
    spec = MaskSpec.causal(1, 30)
    for too_wide in (spec, replace(spec, window=16)):
        with pytest.raises(ModelError, match="asks for sliding_window; use sdpa"):
            windowed(input_ids=torch.randint(0, 256, (1, 30)), tokvid_mask=compile_mask(too_wide))
    with pytest.raises(ModelError, match="asks for sliding_window; use sdpa"):
        windowed(input_ids=torch.randint(0, 256, (1, 30)))
    model = build_model("llama")
    model.set_attn_implementation(register())
    with pytest.raises(ModelError, match=r"the mask is of 1 rows of 30, but the batch of \(1, 6\)"):
        model(input_ids=torch.randint(0, 256, (1, 6)), tokvid_mask=compile_mask(spec))
    output = model(input_ids=torch.randint(0, 256, (1, 6)), use_cache=True)
    with pytest.raises(ModelError, match="a cache"):
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64), past_key_values=output.past_key_values)
