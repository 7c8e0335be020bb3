"""Positions of time, row and column turn any rotary embedding of Llama's kind, and leave alone what they should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from tests.lm.tiny import FAMILIES, GROUPED, SHAPE, TEXT_SIZE, build_model
from tokvid.errors import ModelError, ShapeError
from tokvid_lm.mask_spec import MaskSpec, mask_for
from tokvid_lm.positions import (
    POSITIONS,
    Coordinates,
    PositionKind,
    PositionScheme,
    RotaryByAxis,
    axes_of,
    replace_rotary,
)

STRIDES = (4, 8)
AXES: list[PositionKind] = ["3d", "mm"]


def model_of(family: str) -> PreTrainedModel:
    """As in the other tests, but GPT-NeoX turns whole heads: a quarter of a tiny one is a single pair of channels."""
    if family != "gpt_neox":
        return build_model(family)
    torch.manual_seed(1)
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
    config = GPTNeoXConfig(**SHAPE, rope_parameters=rope, vocab_size=TEXT_SIZE, initializer_range=0.2)
    return GPTNeoXForCausalLM(config).eval()


def document(text: int, t: int, h: int, w: int, after: int, rows: int = 1) -> Coordinates:
    """Text, a video without separators, and text again."""
    size = t * h * w
    index = torch.arange(text + size + after)
    is_content = (index >= text) & (index < text + size)
    cell = torch.zeros(len(index), 3, dtype=torch.int64)
    cell[is_content] = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w))
    start = torch.full_like(index, text)
    columns = {"index": index, "cell": cell, "start": start, "is_content": is_content}
    return Coordinates(**{name: column.expand(rows, *column.shape) for name, column in columns.items()})


def logits_of(model: PreTrainedModel, ids: Tensor, positions: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        arguments = {} if positions is None else mask_for(model, MaskSpec.causal(*ids.shape), positions)
        logits: Tensor = model(input_ids=ids, use_cache=False, **arguments).logits
    return logits


def random_ids(rows: int, length: int) -> Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(5))


def test_the_ids_of_each_kind() -> None:
    place = document(2, 2, 1, 2, 1)
    assert PositionScheme(kind="1d").of(place).tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert PositionScheme(kind="3d", strides=STRIDES).of(place)[:, 0].tolist() == [
        [0, 1, 2, 2, 3, 3, 6],
        [0, 1, 2, 2, 2, 2, 6],
        [0, 1, 2, 3, 2, 3, 6],
    ]
    assert PositionScheme(kind="mm", strides=STRIDES).of(place)[:, 0].tolist() == [
        [0, 1, 2, 2, 6, 6, 6],
        [0, 1, 2, 2, 2, 2, 6],
        [0, 1, 2, 10, 2, 10, 6],
    ]


def test_one_position_is_the_plain_model_bit_for_bit() -> None:
    model, ids = build_model("llama"), random_ids(2, 12)
    plain = logits_of(model, ids)
    scheme = replace_rotary(model, "1d", STRIDES)
    assert isinstance(model.base_model.rotary_emb, LlamaRotaryEmbedding)
    assert torch.equal(logits_of(model, ids, scheme.of(document(2, 2, 2, 2, 2, rows=2))), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_mm_on_text_is_the_plain_model_bit_for_bit(family: str) -> None:
    model, ids = model_of(family), random_ids(2, 40)
    plain = logits_of(model, ids)
    scheme = replace_rotary(model, "mm", STRIDES)
    assert torch.equal(logits_of(model, ids), plain)
    assert torch.equal(logits_of(model, ids, scheme.of(document(40, 0, 1, 1, 0, rows=2))), plain)


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("family", FAMILIES)
def test_codes_are_moved_and_the_text_before_them_is_not(family: str, kind: PositionKind) -> None:
    model, ids = model_of(family), random_ids(1, 17)
    scheme = replace_rotary(model, kind, STRIDES)
    text = logits_of(model, ids)
    moved = logits_of(model, ids, scheme.of(document(4, 2, 2, 3, 1)))
    # The first code stands where text would stand.
    torch.testing.assert_close(moved[:, :5], text[:, :5])
    assert ((moved[:, 5:] - text[:, 5:]).abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_gives_what_the_whole_gives(family: str, kind: PositionKind) -> None:
    model, ids = model_of(family), random_ids(2, 17)
    positions = replace_rotary(model, kind, STRIDES).of(document(4, 2, 2, 3, 1, rows=2))
    whole = logits_of(model, ids, positions)
    cache, found = DynamicCache(config=model.config), []
    with torch.no_grad():
        for start, stop in [(0, 6), *((place, place + 1) for place in range(6, 17))]:
            part = model(
                input_ids=ids[:, start:stop],
                position_ids=positions[..., start:stop],
                past_key_values=cache,
                use_cache=True,
            )
            found.append(part.logits)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-4, atol=1e-5)


head_dims = st.integers(8, 80).map(lambda half: 2 * half)


@settings(max_examples=80, deadline=None)
@given(head_dim=head_dims, kind=st.sampled_from(AXES))
def test_both_channels_of_a_pair_turn_by_one_axis(head_dim: int, kind: PositionKind) -> None:
    rotary = rotary_of(head_dim)
    embedding = RotaryByAxis(rotary, kind)
    still = torch.zeros(3, 1, 1, dtype=torch.int64)
    turned_by = []
    for axis in range(3):
        ids = still.clone()
        ids[axis] = 1
        cos, sin = embedding(torch.zeros(1), ids)
        turned_by.append((sin[0, 0] != 0) | (cos[0, 0] != 1))
    by_axis = torch.stack(turned_by)
    assert torch.equal(by_axis[:, : head_dim // 2], by_axis[:, head_dim // 2 :])
    assert (by_axis.sum(0) == 1).all(), "each channel has one axis"
    shares = by_axis.sum(1).tolist()
    if kind == "3d":
        assert shares == [head_dim - 4 * (head_dim // 6), 2 * (head_dim // 6), 2 * (head_dim // 6)]
    else:
        assert torch.equal(axes_of("mm", rotary.inv_freq)[0], rotary.inv_freq)
        if head_dim % 16 == 0:
            assert shares == [head_dim // 8 * part for part in (2, 3, 3)]
        assert min(shares) > 0


def test_mm_deals_frequencies_out_by_turns() -> None:
    assert axes_of("mm", rotary_of(40).inv_freq)[1].tolist() == [0, 0, 1, 2, 1, 2, 1, 2] * 2 + [0, 0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(
    head_dim=head_dims,
    kind=st.sampled_from(AXES),
    where=st.tuples(*[st.integers(0, 200)] * 6),
    shift=st.tuples(*[st.integers(0, 200)] * 3),
)
def test_scores_depend_on_differences_alone(
    head_dim: int, kind: PositionKind, where: tuple[int, ...], shift: tuple[int, ...]
) -> None:
    embedding = RotaryByAxis(rotary_of(head_dim), kind)
    query, key = torch.randn(2, 1, 1, 1, head_dim, generator=torch.Generator().manual_seed(7)) / head_dim**0.5

    def score(moved: tuple[int, ...]) -> Tensor:
        ids = torch.tensor(where).reshape(2, 3) + torch.tensor(moved)
        turned = []
        for vector, place in zip((query, key), ids, strict=True):
            cos, sin = embedding(torch.zeros(1), place[:, None, None])
            turned.append(apply_rotary_pos_emb(vector, vector, cos, sin)[0])
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(shift), score((0, 0, 0)), rtol=1e-3, atol=2e-4)


@settings(max_examples=40, deadline=None)
@given(head_dim=head_dims, theta=st.sampled_from([100.0, 10_000.0, 1e6]))
def test_each_axis_of_3d_has_a_spectrum_of_its_own(head_dim: int, theta: float) -> None:
    frequencies, axis = axes_of("3d", rotary_of(head_dim, theta).inv_freq)
    for number in range(3):
        mine = frequencies[axis == number]
        expected = theta ** (-torch.arange(len(mine), dtype=torch.float64) / len(mine))
        torch.testing.assert_close(mine.double(), expected, rtol=1e-4, atol=1e-9)


def rotary_of(head_dim: int, theta: float = 10_000.0) -> LlamaRotaryEmbedding:
    rope = {"rope_type": "default", "rope_theta": theta}
    return LlamaRotaryEmbedding(LlamaConfig(hidden_size=head_dim, num_attention_heads=1, rope_parameters=rope))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "linear", "factor": 2.0},
    ],
)
@pytest.mark.parametrize("kind", AXES)
def test_stretched_frequencies_and_their_scale_are_the_models_own(rope: dict[str, Any], kind: PositionKind) -> None:
    settings_of = {"rope_theta": 10_000.0, "original_max_position_embeddings": 64, **rope}
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**GROUPED, vocab_size=TEXT_SIZE, rope_parameters=settings_of)).eval()
    own = model.base_model.rotary_emb
    replace_rotary(model, kind, STRIDES)
    ids = torch.arange(9).expand(3, 1, 9)
    cos, sin = model.base_model.rotary_emb(torch.zeros(1), ids)
    scale = torch.full_like(cos, float(own.attention_scaling) ** 2)
    torch.testing.assert_close(cos.square() + sin.square(), scale)
    if kind == "mm":
        assert torch.equal(cos, own(torch.zeros(1), ids[0])[0])


def test_it_survives_half_precision_saving_and_loading(tmp_path: Any) -> None:
    model, ids = build_model("llama"), random_ids(1, 17)
    positions = replace_rotary(model, "mm", STRIDES).of(document(4, 2, 2, 3, 1))
    expected = logits_of(model, ids, positions)
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    replace_rotary(again, "mm", STRIDES)
    assert torch.equal(logits_of(again, ids, positions), expected)
    half = again.to(torch.bfloat16)
    cos, _ = half.base_model.rotary_emb(torch.zeros(1, dtype=torch.bfloat16), positions)
    assert cos.dtype == torch.bfloat16
    # Text is still what the model itself computes.
    plain = half.base_model.rotary_emb.rotary
    text = positions[:, :, :4]
    assert torch.equal(half.base_model.rotary_emb(torch.zeros(1), text)[0], plain(torch.zeros(1), text[0])[0])


def test_installing_twice_is_installing_once() -> None:
    model, ids = build_model("llama"), random_ids(1, 6)
    replace_rotary(model, "mm", STRIDES)
    first = model.base_model.rotary_emb
    replace_rotary(model, "mm", STRIDES)
    assert model.base_model.rotary_emb is first
    for kind in ("3d", "1d"):
        with pytest.raises(ModelError, match="has positions 'mm' already"):
            replace_rotary(model, kind, STRIDES)
    assert logits_of(model, ids).isfinite().all()


def test_models_that_turn_otherwise_are_refused() -> None:
    shape = {**GROUPED, "vocab_size": TEXT_SIZE}
    dynamic = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    refused: list[tuple[PreTrainedModel, str]] = [
        (
            GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=TEXT_SIZE)),
            "no rotary embedding in one",
        ),
        (build_model("gpt_neox"), "turns 2 channels of a head, too few"),
        (CohereForCausalLM(CohereConfig(**{**shape, "hidden_size": 64, "num_attention_heads": 4})), "in another way"),
        (Gemma3ForCausalLM(Gemma3TextConfig(**shape)), "no rotary embedding in one"),
        (LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=dynamic)), "change with the length"),
    ]
    for model, message in refused:
        with pytest.raises(ModelError, match=message) as caught:
            replace_rotary(model, "mm", STRIDES)
        assert "\n" not in str(caught.value)
        assert "1d" in str(caught.value)


def test_wrong_arguments_raise() -> None:
    assert POSITIONS == ("1d", "3d", "mm")
    with pytest.raises(ModelError, match="unknown positions '3D': known: 1d, 3d, mm"):
        PositionScheme(kind="3D")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="strides are positive"):
        PositionScheme(kind="mm", strides=(0, 8))
    place = document(1, 1, 1, 1, 1)
    with pytest.raises(ShapeError, match=r"cell is \[B,S,3\]"):
        Coordinates(index=place.index, cell=place.cell[..., :2], start=place.start, is_content=place.is_content)
