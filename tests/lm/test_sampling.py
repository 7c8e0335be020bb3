"""One draw: distributions, cut-offs, guidance, and noise that belongs to its place; settings are checked."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokvid.errors import ModelError
from tokvid.guidance import guide
from tokvid.noise import uniform
from tokvid_lm.samplers.sampling import Sampling, draw


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
        ({"mode": "maskgti"}, "mode is one of next_token, maskgit, frame"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"choice_temperature": -1.0}, "choice_temperature must be at least 0"),
        ({"guidance_ramp": True}, "guidance_ramp is for the masked modes, maskgit and frame, and this is next_token"),
    ],
)
def test_impossible_settings_raise(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Sampling(**setting)  # type: ignore[arg-type]


def test_settings_are_overridden_one_by_one() -> None:
    own = Sampling(mode="frame", temperature=0.7, top_k=5, top_p=0.9, steps=4, first_steps=8)
    assert own.override() == own
    changed = own.override(top_k=0, top_p=1.0, temperature=1.0, guidance_scale=2.0, seed=3, choice_temperature=0.0)
    assert changed == Sampling(mode="frame", guidance_scale=2.0, steps=4, first_steps=8, choice_temperature=0.0, seed=3)
    assert own.override(steps=6).first_steps == 0, "who says how many steps means every frame"
    for setting in ({"steps": 4}, {"choice_temperature": 0.0}):
        with pytest.raises(ModelError, match=r"for the masked modes, maskgit and frame, and this is next_token"):
            Sampling().override(**setting)  # type: ignore[arg-type]
