"""One rule says who sees whom; every kind of attention is given it in its own form and computes the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.masking_utils import flash_attention_mask

from tests.lm.masks import mixed, odd_specs, slowly, specs
from tests.lm.tiny import FAMILIES, SHAPE, build_model
from tokvid.errors import ModelError
from tokvid_lm import block_attention
from tokvid_lm.attention_windows import layer_windows
from tokvid_lm.mask_spec import BLOCKS, MaskSpec, Run, check_backend, mask_for
from tokvid_lm.positions import replace_rotary

LENGTHS = [[25, 13, 2], [30]]  # longer than the sliding window of the tiny Mistral


def logits_of(
    model: PreTrainedModel, kind: str, ids: Tensor, spec: MaskSpec, positions: Tensor | None = None
) -> Tensor:
    block_attention.register()
    model.set_attn_implementation(kind)
    with torch.no_grad():
        arguments = mask_for(model, spec, positions)
        logits: Tensor = model(input_ids=ids, use_cache=False, **arguments).logits
    return logits


def flex_logits(model: PreTrainedModel, ids: Tensor, spec: MaskSpec, positions: Tensor) -> Tensor:
    """Uncompiled: compiled on a processor torch's flex attention is wrong for rows shorter than a block."""
    model.set_attn_implementation("flex_attention")
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        mask = spec.to_block_mask()
        logits: Tensor = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return logits


def random_ids(spec: MaskSpec) -> Tensor:
    return torch.randint(0, 256, spec.order.shape, generator=torch.Generator().manual_seed(3))


def mixed_layers() -> PreTrainedModel:
    """A Qwen2 of which one layer looks 8 positions back and the other at all."""
    torch.manual_seed(1)
    config = Qwen2Config(
        **SHAPE,
        num_key_value_heads=2,
        vocab_size=259,
        initializer_range=0.2,
        use_sliding_window=True,
        sliding_window=8,
        layer_types=["full_attention", "sliding_attention"],
    )
    return Qwen2ForCausalLM(config).eval()


@settings(max_examples=60, deadline=None)
@given(spec=specs() | odd_specs())
def test_every_form_is_the_rule(spec: MaskSpec) -> None:
    expected = slowly(spec)
    assert torch.equal(spec.to_bool(), expected)
    additive = spec.to_additive(torch.float32)
    assert torch.equal(additive == 0, expected)
    assert additive.isfinite().all()
    assert expected.any(-1).all(), "a query without a key would be NaN"


@settings(max_examples=15, deadline=None)
@given(spec=specs() | odd_specs())
def test_the_form_for_flex_is_the_rule(spec: MaskSpec) -> None:
    rows, length = spec.order.shape
    row, query, key = torch.meshgrid(torch.arange(rows), torch.arange(length), torch.arange(length), indexing="ij")
    mask = spec.to_block_mask(16)
    assert mask.shape == (rows, 1, length, length)
    assert torch.equal(mask.mask_mod(row, torch.tensor(0), query, key), slowly(spec)[:, 0])
    # Of the blocks that are left out nothing is seen.
    kept = mask.to_dense()[:, 0].bool()
    tiles = kept.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :length, :length]
    assert not (slowly(spec)[:, 0] & ~tiles).any()


def test_runs_say_what_ordinary_documents_are() -> None:
    spec = MaskSpec.of_runs(
        [
            [Run(length=2), Run(length=6, kind="block", frames=3), Run(length=1), Run(length=3, begins=True)],
            [Run(length=4, kind="block")],
        ]
    )
    assert spec.order.tolist() == [[0, 1, 2, 2, 4, 4, 6, 6, 8, 0, 1, 2], [0] * 12]
    assert spec.document.tolist() == [[0] * 9 + [1] * 3, [0] * 4 + [-1] * 8]
    assert torch.equal(spec.block, spec.order)
    assert not spec.ghost.any()
    assert MaskSpec.of_runs([[Run(length=2)]], length=5).document.tolist() == [[0, 0, -1, -1, -1]]


def test_plain_causal_documents() -> None:
    assert torch.equal(MaskSpec.causal(2, 9).to_bool(), torch.ones(2, 1, 9, 9, dtype=torch.bool).tril())
    packed = MaskSpec.packed_causal([[3, 2], [4]], length=7)
    assert packed.document.tolist() == [[0, 0, 0, 1, 1, -1, -1], [0, 0, 0, 0, -1, -1, -1]]
    assert packed.order.tolist() == [[0, 1, 2, 0, 1, 0, 0], [0, 1, 2, 3, 0, 0, 0]]


@pytest.mark.parametrize(
    "wrong", [{"length": 0}, {"length": 4, "frames": 2}, {"length": 5, "kind": "block", "frames": 2}]
)
def test_impossible_runs_raise(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="equal frames"):
        Run(**wrong)


def test_impossible_masks_raise() -> None:
    spec = MaskSpec.causal(1, 3)
    with pytest.raises(ModelError, match=r"all \[B,S\]"):
        replace(spec, order=spec.order[0])
    with pytest.raises(ModelError, match="ghost is bool"):
        replace(spec, ghost=spec.order)
    with pytest.raises(ModelError, match="not negative"):
        replace(spec, window=-1)
    with pytest.raises(ModelError, match="do not fit into 2"):
        MaskSpec.packed_causal([[3]], length=2)


@settings(max_examples=60, deadline=None)
@given(spec=specs() | odd_specs())
def test_what_is_said_to_be_causal_is(spec: MaskSpec) -> None:
    if not spec.is_causal:
        return
    place = torch.arange(spec.order.shape[1])
    same = spec.document[:, :, None] == spec.document[:, None, :]
    padding = (spec.document < 0)[:, :, None]
    itself = place[:, None] == place
    expected = (same & ~padding & (place[:, None] >= place)) | (padding & itself)
    assert torch.equal(spec.to_bool()[:, 0], expected)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=3).filter(any))
def test_packed_documents_are_causal_and_ragged(lengths: list[list[int]]) -> None:
    spec = MaskSpec.packed_causal(lengths, length=max(map(sum, lengths)) + 1)
    assert spec.is_causal
    assert spec.is_one_document_a_row == all(len(row) <= 1 for row in lengths)
    # What flash attention is given says the same: pieces of all rows one after the other, each causal in itself.
    ragged = spec.to_ragged()
    flat = torch.zeros(spec.order.numel(), spec.order.numel(), dtype=torch.bool)
    sizes = []
    for start, stop in pairwise(ragged["cu_seq_lens_q"].tolist()):
        flat[start:stop, start:stop] = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
        sizes.append(stop - start)
    assert torch.equal(flat, torch.block_diag(*spec.to_bool()[:, 0].int()).bool())
    assert ragged["max_length_q"] == max(sizes)
    assert ragged["cu_seq_lens_q"].dtype == torch.int32


@pytest.mark.parametrize(
    "change",
    [
        {"window": 3},
        {"ghost": torch.tensor([[False, False, True, False, False, False]])},
        {"block": torch.tensor([[0, 1, 1, 3, 4, 5]])},
        {"block": torch.tensor([[0, 1, 2, 0, 4, 5]])},
        {"order": torch.tensor([[0, 1, 2, 2, 4, 5]])},
        {"order": torch.tensor([[0, 1, 2, 4, 5, 6]])},
        {"document": torch.tensor([[0, 0, 1, 1, 0, 0]])},
    ],
)
def test_anything_else_is_not_causal(change: dict[str, Any]) -> None:
    spec = MaskSpec.causal(1, 6)
    assert spec.is_causal
    assert not replace(spec, **change).is_causal


def test_a_window_and_its_sinks() -> None:
    spec = replace(MaskSpec.causal(1, 6), window=1, sinks=1)
    assert spec.to_bool()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [1, 0, 0, 0, 1, 1],
    ]
    assert spec.narrowed(4) is spec
    assert spec.narrowed(0).window == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_eager_sdpa_and_blocks_give_the_same_logits(family: str) -> None:
    spec = mixed()
    ids, model = random_ids(spec), build_model(family)
    expected = logits_of(model, "sdpa", ids, spec, spec.order)
    assert expected.isfinite().all()
    for kind in ("eager", BLOCKS):
        torch.testing.assert_close(logits_of(model, kind, ids, spec, spec.order), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_flex_gives_the_same_logits(family: str) -> None:
    spec = mixed()
    ids, model = random_ids(spec), build_model(family)
    expected = logits_of(model, "sdpa", ids, spec, spec.order)
    torch.testing.assert_close(flex_logits(model, ids, spec, spec.order), expected, rtol=1e-4, atol=1e-5)


def alone(model: PreTrainedModel, kind: str, ids: Tensor, lengths: Sequence[Sequence[int]]) -> list[Tensor]:
    """The logits of each document by the model itself, without any mask of ours."""
    model.set_attn_implementation(kind)
    found = []
    for row, sizes in enumerate(lengths):
        start = 0
        for size in sizes:
            with torch.no_grad():
                found.append(model(input_ids=ids[row : row + 1, start : start + size], use_cache=False).logits[0])
            start += size
    return found


@pytest.mark.parametrize("kind", ["sdpa", "eager", BLOCKS])
@pytest.mark.parametrize("family", [*FAMILIES, "layers that differ"])
def test_packed_is_each_document_alone(family: str, kind: str) -> None:
    model = mixed_layers() if family == "layers that differ" else build_model(family)
    spec = MaskSpec.packed_causal(LENGTHS)
    ids = random_ids(spec)
    expected = alone(model, "sdpa", ids, LENGTHS)
    if family == "layers that differ" and kind == BLOCKS:
        with pytest.raises(ModelError, match="this model's differ: use sdpa"):
            logits_of(model, kind, ids, spec)
        return
    logits = logits_of(model, kind, ids, spec)
    pieces = [piece for row, sizes in enumerate(LENGTHS) for piece in logits[row, : sum(sizes)].split(sizes)]
    for mine, its in zip(pieces, expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["sdpa", "eager", BLOCKS])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_document_a_row_needs_no_mask_and_is_the_same(family: str, kind: str) -> None:
    model, lengths = build_model(family), [[21], [30], [1]]
    spec = MaskSpec.packed_causal(lengths)
    ids = random_ids(spec)
    block_attention.register()
    model.set_attn_implementation(kind)
    mask = mask_for(model, spec)["attention_mask"]
    assert mask.ndim == 2
    logits = logits_of(model, kind, ids, spec)
    assert logits.isfinite().all()
    for row, its in enumerate(alone(model, "sdpa", ids, lengths)):
        torch.testing.assert_close(logits[row, : len(its)], its, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["sdpa", "eager", BLOCKS])
def test_padding_gives_no_nan(kind: str) -> None:
    spec = MaskSpec.packed_causal([[3, 4], [], [2]], length=12)
    assert logits_of(build_model("llama"), kind, random_ids(spec), spec).isfinite().all()


@pytest.mark.parametrize("kind", ["sdpa", "eager", BLOCKS])
def test_gradients_flow_from_what_is_seen_and_from_nothing_else(kind: str) -> None:
    spec, model = mixed(), build_model("llama")
    block_attention.register()
    model.set_attn_implementation(kind)
    rows, length = spec.order.shape
    embeddings = model.get_input_embeddings()(random_ids(spec)).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings, use_cache=False, **mask_for(model, spec, spec.order)).logits
    flows = torch.zeros(rows, length, length, dtype=torch.bool)
    for query in range(length):
        (grad,) = torch.autograd.grad(logits[:, query].square().sum(), embeddings, retain_graph=True)
        flows[:, query] = (grad != 0).any(-1)
    assert torch.equal(flows, slowly(spec)[:, 0])  # what a layer hands on was seen before: the rule is transitive


def test_three_positions_go_with_every_kind() -> None:
    spec, model = MaskSpec.causal(3, 8), build_model("llama")
    for kind in ("sdpa", "eager", BLOCKS):
        block_attention.register()
        model.set_attn_implementation(kind)
        arguments = mask_for(model, spec, torch.arange(8).expand(3, 3, 8))
        assert arguments["position_ids"].shape == (3, 3, 8)
        assert arguments["attention_mask"].shape == (3, 8)


def test_eager_would_be_silently_wrong_with_a_bool_mask() -> None:
    """Why it is refused: if transformers mends this, the check may go."""
    spec, model = mixed(), build_model("llama")
    ids = random_ids(spec)
    right = logits_of(model, "eager", ids, spec, spec.order)
    with torch.no_grad():
        wrong = model(input_ids=ids, attention_mask=spec.to_bool(), position_ids=spec.order, use_cache=False).logits
    assert (wrong - right).abs().max() > 0.1


def test_attention_that_would_not_see_the_mask_is_refused() -> None:
    spec, causal = mixed(), MaskSpec.causal(1, 4)
    block_mask = causal.to_block_mask()
    refused: list[tuple[str, object, str]] = [
        ("eager", spec.to_bool(), "to_additive"),
        ("flex_attention", spec.to_bool(), "to_block_mask"),
        ("flex_attention", spec.to_additive(torch.float32), "to_block_mask"),
        ("sdpa", block_mask, "takes no BlockMask"),
        ("eager", block_mask, "takes no BlockMask"),
        (BLOCKS, spec.to_bool(), "takes no Tensor"),
        ("kernels-community/flash-attn2", spec, "takes no mask but the causal one"),
        ("kernels-community/flash-attn2", spec.to_bool(), "takes no mask but the causal one"),
        ("paged", spec, "not known to take masks"),
    ]
    for kind, form, message in refused:
        with pytest.raises(ModelError, match=message) as caught:
            check_backend(kind, form)
        assert "\n" not in str(caught.value)
    for kind, form in [
        ("sdpa", spec),
        ("sdpa", spec.to_bool()),
        ("eager", spec.to_additive(torch.float32)),
        ("flex_attention", block_mask),
        (BLOCKS, block_attention.compile_mask(spec)),
        ("kernels-community/flash-attn2", causal),
        ("kernels-community/flash-attn2", None),
    ]:
        check_backend(kind, form)


def test_flex_on_a_processor_is_refused() -> None:
    model = build_model("llama")
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ModelError, match="no backward pass on a processor"):
        mask_for(model, MaskSpec.causal(1, 4))


@pytest.mark.parametrize("kind", ["flash_attention_2", "flash_attention_3"])
def test_flash_without_its_package_is_one_line(kind: str) -> None:
    if find_spec("flash_attn") or find_spec("flash_attn_interface"):
        pytest.skip("a package of flash attention is installed")
    with pytest.raises(ModelError, match=r"needs the package flash-attn.*pip install 'tokvid\[flash\]'") as caught:
        check_backend(kind, None)
    assert "\n" not in str(caught.value)


def test_layers_that_no_window_describes_are_refused() -> None:
    config = mixed_layers().config
    assert layer_windows(config) == {"full_attention": None, "sliding_attention": 8}
    config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(ModelError, match="chunked_attention"):
        layer_windows(config)


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What flash attention for ragged rows computes, with the arguments that it takes, one piece at a time."""
    assert attention_mask is None and cu_seq_lens_q is not None
    groups, rows = query.shape[1] // key.shape[1], len(query)
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    flat = [torch.cat(tensor.unbind(0), 1) for tensor in (query, key, value)]
    pieces = []
    for start, stop in pairwise(cu_seq_lens_q.tolist()):
        place = torch.arange(stop - start)
        behind = place[:, None] - place
        mask = (behind >= 0) & (behind < (sliding_window or len(place)))
        part = [tensor[:, start:stop] for tensor in flat]
        pieces.append(F.scaled_dot_product_attention(*part, attn_mask=mask, scale=scaling))
    return torch.stack(torch.cat(pieces, 1).chunk(rows, 1)).transpose(1, 2), None


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_flash_is_given_reaches_it_and_is_each_document_alone(family: str, axes: int) -> None:
    """The way there is the real one, also for several rows and for three positions; the kernel itself needs a GPU."""
    AttentionInterface.register("flash_by_hand", ragged_attention)
    AttentionMaskInterface.register("flash_by_hand", flash_attention_mask)
    model, spec = build_model(family), MaskSpec.packed_causal(LENGTHS)
    ids, positions = random_ids(spec), None
    if axes == 3 and family != "gpt_neox":  # of which a tiny one turns too few channels
        replace_rotary(model, "mm", (4, 8))
        positions = spec.order.expand(3, -1, -1)
    model.config._attn_implementation = "flash_by_hand"
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False, **mask_for(model, spec, positions)).logits
    pieces = [piece for row, sizes in enumerate(LENGTHS) for piece in logits[row, : sum(sizes)].split(sizes)]
    for mine, its in zip(pieces, alone(model, "sdpa", ids, LENGTHS), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("flash_attn") is None, reason="needs a GPU and the package flash-attn"
)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_flash_gives_each_document_alone(family: str) -> None:
    spec, model = MaskSpec.packed_causal(LENGTHS), build_model(family).to("cuda", torch.bfloat16)
    spec = replace(spec, **{name: getattr(spec, name).cuda() for name in ("document", "order", "block", "ghost")})
    ids = random_ids(MaskSpec.packed_causal(LENGTHS)).cuda()
    logits = logits_of(model, "flash_attention_2", ids, spec)
    pieces = [piece for row, sizes in enumerate(LENGTHS) for piece in logits[row, : sum(sizes)].split(sizes)]
    for mine, its in zip(pieces, alone(model, "sdpa", ids, LENGTHS), strict=True):
        torch.testing.assert_close(mine, its, rtol=0.1, atol=0.1)
