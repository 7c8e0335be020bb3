"""Sampling: the cache changes nothing, noise belongs to a sample and not to its batch, settings are checked."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from tests.lm.tiny import FAMILIES, build_model, build_vocabulary
from tokvid.errors import ModelError
from tokvid.grid import Grid
from tokvid_lm.grammar import Grammar
from tokvid_lm.guidance import guide
from tokvid_lm.layout import RasterLayout
from tokvid_lm.noise import uniform
from tokvid_lm.samplers.cache import reserve_cache
from tokvid_lm.samplers.next_token import Sampling, _Stepper, draw, sample_next_token
from tokvid_lm.templates import BareTemplate

VOCABULARY = build_vocabulary(text_size=260)
TEMPLATE = BareTemplate(VOCABULARY)
GRID = Grid(t=2, h=2, w=3)
CODES = 24
FIRST = len(TEMPLATE.header(GRID))


def _grammar() -> Grammar:
    return Grammar.video(VOCABULARY, TEMPLATE, RasterLayout(), GRID)


def _prompt(*text: int) -> torch.Tensor:
    return torch.tensor([*text, *TEMPLATE.header(GRID)])


PROMPTS = [_prompt(1, 2, 3, 4, 5), _prompt(9), _prompt(7, 7, 7)]
NULL = [_prompt()] * 3


def _sample(family: str = "llama", **changes: object) -> torch.Tensor:
    arguments: dict[str, object] = {"num_steps": CODES, "first_step": FIRST, "null_prompts": NULL} | changes
    sampling = arguments.pop("sampling", Sampling(guidance_scale=2.0))
    prompts = arguments.pop("prompts", PROMPTS)
    model = build_model(family, rows=VOCABULARY.total_size)
    return sample_next_token(model, prompts, _grammar(), sampling, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_logits_are_the_uncached_ones(family: str) -> None:
    model = build_model(family, rows=VOCABULARY.total_size)
    with torch.inference_mode():
        cached = _Stepper(model, PROMPTS, 24, use_cache=True)
        whole = _Stepper(model, PROMPTS, 24, use_cache=False)
        ids = None
        for step in range(24):  # further than Mistral's window of 16
            ours, theirs = cached.step(ids), whole.step(ids)
            assert torch.allclose(ours, theirs, atol=2e-5), step
            ids = theirs.argmax(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_ids_are_the_uncached_ones(family: str) -> None:
    assert torch.equal(_sample(family), _sample(family, use_cache=False))


def test_left_padding_changes_nothing() -> None:
    model = build_model("llama", rows=VOCABULARY.total_size)
    with torch.inference_mode():
        batch = _Stepper(model, PROMPTS, 1, use_cache=True).step(None)
        for row, prompt in enumerate(PROMPTS):
            alone = model(prompt[None]).logits[0, -1]
            assert torch.allclose(batch[row], alone, atol=2e-5)


def test_seeds_reproduce_and_differ() -> None:
    one, again = _sample(), _sample()
    assert torch.equal(one, again)
    assert not torch.equal(one, _sample(sampling=Sampling(guidance_scale=2.0, seed=1)))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    together = _sample()
    for row in range(3):
        alone = _sample(prompts=PROMPTS[row : row + 1], null_prompts=NULL[:1], sample_indices=torch.tensor([row]))
        assert torch.equal(together[row : row + 1], alone)
    twins = _sample(prompts=[PROMPTS[0]] * 3)
    assert len(torch.unique(twins, dim=0)) == 3


def test_guidance_of_one_is_off_and_two_is_not() -> None:
    off = _sample(sampling=Sampling(), null_prompts=None)
    assert torch.equal(off, _sample(sampling=Sampling(guidance_scale=1.0)))
    assert not torch.equal(off, _sample(sampling=Sampling(guidance_scale=4.0)))
    unconditional = _sample(prompts=NULL, sampling=Sampling(), null_prompts=None)
    assert torch.equal(unconditional, _sample(sampling=Sampling(guidance_scale=0.0)))


def test_guidance_is_linear_from_unconditional_to_conditional() -> None:
    conditional, unconditional = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(guide(conditional, unconditional, 1.0), conditional)
    assert torch.equal(guide(conditional, unconditional, 0.0), unconditional)
    assert torch.allclose(guide(conditional, unconditional, 3.0), 3 * conditional - 2 * unconditional, atol=1e-5)
    with pytest.raises(ModelError, match="one shape"):
        guide(conditional, unconditional[:2], 2.0)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    noise = uniform(0, torch.arange(40_000), torch.tensor(5))
    drawn = draw(logits.expand(40_000, -1), noise, Sampling())
    assert torch.allclose(drawn.bincount() / 40_000, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.01)
    # Temperature divides the logits: at 0.5 probabilities are squared, then normalised.
    cold = draw(logits.expand(40_000, -1), noise, Sampling(temperature=0.5)).bincount() / 40_000
    assert torch.allclose(cold, torch.tensor([1.0, 4.0, 9.0, 16.0]) / 30, atol=0.01)


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(5000, -1)
    noise = uniform(1, torch.arange(5000))
    assert set(draw(logits, noise, Sampling(top_k=2)).tolist()) == {1, 3}
    assert set(draw(logits, noise, Sampling(top_k=1)).tolist()) == {1}
    assert set(draw(logits, noise, Sampling(top_k=99)).tolist()) == {0, 1, 2, 3}
    assert set(draw(logits, noise, Sampling(top_p=0.69)).tolist()) == {1, 3}
    assert set(draw(logits, noise, Sampling(top_p=0.71)).tolist()) == {1, 2, 3}
    assert set(draw(logits, noise, Sampling(top_p=1e-9)).tolist()) == {1}
    assert set(draw(logits, noise, Sampling(top_p=0.6, top_k=3)).tolist()) == {1, 3}
    assert set(draw(logits, noise, Sampling(temperature=1e-9)).tolist()) == {1}


def test_columns_at_minus_infinity_are_never_drawn() -> None:
    logits = torch.full((1000, 64), float("-inf"))
    logits[:, 40] = 0.0
    noise = torch.linspace(0, 1 - 2.0**-23, 1000)
    for sampling in (Sampling(), Sampling(top_k=50), Sampling(top_p=1.0), Sampling(temperature=100.0)):
        assert set(draw(logits, noise, sampling).tolist()) == {40}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(-(2**70), 2**70), sample=st.integers(0, 2**40))
def test_noise_is_a_function_of_its_place(seed: int, sample: int) -> None:
    steps = torch.arange(50)
    noise = uniform(seed, torch.tensor(sample), steps)
    assert torch.equal(noise[7], uniform(seed, torch.tensor(sample), torch.tensor(7)))
    assert float(noise.min()) >= 0.0
    assert float(noise.max()) < 1.0
    assert len(noise.unique()) >= 49


def test_noise_is_uniform_and_unrelated() -> None:
    noise = uniform(0, torch.arange(400)[:, None], torch.arange(400)[None]).double()
    assert abs(float(noise.mean()) - 0.5) < 0.005
    assert torch.allclose(torch.histc(noise, 10, 0, 1) / noise.numel(), torch.tensor(0.1).double(), atol=0.005)
    other = uniform(1, torch.arange(400)[:, None], torch.arange(400)[None]).double()
    pairs = [(noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1]), (noise, other), (noise, noise.T)]
    for one, two in pairs[:3]:
        assert abs(float(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1])) < 0.02
    assert not torch.allclose(*pairs[3])


def test_text_rows_end_on_their_own() -> None:
    model = build_model("llama", rows=VOCABULARY.total_size)
    ends = list(range(100))
    grammar = Grammar.text(VOCABULARY, ends)
    ids = sample_next_token(model, [torch.tensor([i + 200]) for i in range(8)], grammar, Sampling(), num_steps=30)
    assert ids.shape[1] < 30
    lengths = set()
    for row in ids.tolist():
        end = next(i for i, token in enumerate(row) if token in ends)
        lengths.add(end)
        assert all(token < VOCABULARY.text_size for token in row[:end])
        assert all(token == grammar.pad_id for token in row[end + 1 :])
    assert len(lengths) > 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": -1.0}, "temperature must be above 0"),
        ({"temperature": math.nan}, "temperature must be above 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_k": -5}, "top_k must be at least 1"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]"),
        ({"top_p": 1.5}, "top_p must lie"),
        ({"guidance_scale": math.inf}, "guidance_scale must be finite"),
    ],
)
def test_impossible_settings_raise(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Sampling(**setting)  # type: ignore[arg-type]


def test_what_cannot_be_sampled_raises() -> None:
    with pytest.raises(ModelError, match="one unconditional prompt for each"):
        _sample(null_prompts=None)
    with pytest.raises(ModelError, match="at least one id"):
        _sample(prompts=[torch.tensor([], dtype=torch.int64)], sampling=Sampling())
    with pytest.raises(ModelError, match="need 523 positions, but the model's context has 256"):
        _sample(prompts=[torch.zeros(500, dtype=torch.int64)], sampling=Sampling())
    model = build_model("llama", rows=VOCABULARY.total_size)
    with torch.no_grad():
        model.lm_head.weight[-1] = float("nan")  # type: ignore[index,union-attr,operator]
    with pytest.raises(ModelError, match="NaN at step 1"):  # codebook 1 holds the last id
        sample_next_token(model, PROMPTS, _grammar(), Sampling(), num_steps=CODES, first_step=FIRST)


def test_the_model_is_left_as_it_was() -> None:
    model = build_model("llama", rows=VOCABULARY.total_size).train()
    sample_next_token(model, PROMPTS, _grammar(), Sampling(), num_steps=2, first_step=FIRST)
    assert model.training
    ids = sample_next_token(
        model, PROMPTS, _grammar(), Sampling(), num_steps=CODES, first_step=FIRST, autocast=torch.bfloat16
    )
    assert ids.shape == (3, CODES)


def test_the_reserved_cache_holds_what_the_dynamic_one_holds() -> None:
    config = build_model("llama").config
    generator = torch.Generator().manual_seed(0)
    ours, theirs = reserve_cache(config, 4), DynamicCache(config=config)
    halved = reserve_cache(config, 4, stored_as=torch.bfloat16)
    for length in (3, 1, 1, 5):  # beyond what was reserved
        keys, values = torch.randn(2, 2, 4, length, 8, generator=generator)
        expected = theirs.update(keys, values, 1)
        for got, want in zip(ours.update(keys, values, 1), expected, strict=True):
            assert torch.equal(got, want)
        assert halved.update(keys, values, 1)[0].dtype == torch.bfloat16
        assert torch.equal(halved.layers[1].values, expected[1].bfloat16())
        assert ours.get_seq_length(1) == theirs.get_seq_length(1) == halved.get_seq_length(1)
