"""The diffusion head: its loss, its flow, and that a token knows nothing of the others.

After a change that is meant to change its arithmetic, write ``tests/golden/diffusion_head.json`` anew:

    python -m tests.tokvid.test_diffusion_head
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokvid.diffusion_head import DiffusionHead, DiffusionHeadConfig
from tokvid.errors import ConfigError, ModelError, ShapeError
from tokvid.flow import draw_latents, follow, starting_noise

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "diffusion_head.json"
TOKENS = 64


def build(*, lively: bool = True, **changes: Any) -> DiffusionHead:
    """A small head; ``lively``: as after some training, when nothing is zero."""
    shape = {"condition_dim": 5, "mean": (1.0, -2.0, 0.5), "deviation": (0.5, 2.0, 1.0), "width": 32, "depth": 2}
    torch.manual_seed(0)
    head = DiffusionHead(DiffusionHeadConfig(**{**shape, **changes}))
    if lively:
        for parameter in head.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return head


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_loss_begins_at_its_closed_form() -> None:
    """A head that answers nothing is wrong by the whole of noise - x."""
    head, latents, conditions = build(lively=False), normal(TOKENS, 3), normal(TOKENS, 5, seed=1)
    noise, times = normal(2, TOKENS, 3, seed=2), torch.rand(2, TOKENS)
    expected = (noise - head.standardise(latents)).square().mean()
    found = float(head.loss(latents, conditions, noise=noise, times=times).detach())
    assert found == pytest.approx(float(expected), rel=1e-6)
    # Standardised latents and noise: two a channel, in the mean of many.
    many = head.unstandardise(normal(20_000, 3))
    assert float(head.loss(many, torch.zeros(20_000, 5)).detach()) == pytest.approx(2.0, abs=0.03)


def test_the_ends_of_the_way() -> None:
    """At time 0 the head is shown the latent, at 1 the noise, and is asked for the same velocity."""
    head, latents, conditions = build(), normal(TOKENS, 3), normal(TOKENS, 5, seed=1)
    noise, clean = normal(1, TOKENS, 3, seed=2), head.standardise(normal(TOKENS, 3))
    for time, shown in ((0.0, clean[None]), (1.0, noise)):
        times = torch.full((1, TOKENS), time)
        expected = (head(shown, times, conditions) - (noise - clean)).square().mean()
        found = head.loss(latents, conditions, noise=noise, times=times)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_a_token_is_seen_at_several_times_whose_logits_are_normal() -> None:
    head = build(repeats=4, time_mean=0.5, time_deviation=0.8)
    seen: list[tuple[Tensor, Tensor]] = []
    forward = head.forward

    def noted(noised: Tensor, times: Tensor, conditions: Tensor) -> Tensor:
        seen.append((noised, times))
        return forward(noised, times, conditions)

    head.forward = noted  # type: ignore[method-assign]
    torch.manual_seed(0)
    many = 5000
    assert head.token_losses(torch.zeros(many, 3), torch.zeros(many, 5)).shape == (many,)
    ((noised, times),) = seen
    assert noised.shape == (4, many, 3) and times.shape == (4, many)
    assert len(times[:, 0].unique()) == 4 and len(noised[:, 0, 0].unique()) == 4
    logits = times.logit().flatten()
    assert float(logits.mean()) == pytest.approx(0.5, abs=0.03) and float(logits.std()) == pytest.approx(0.8, abs=0.03)
    # Normal and not merely of that mean and deviation.
    within = ((logits - 0.5).abs() < 0.8).float().mean()
    assert float(within) == pytest.approx(0.6827, abs=0.02)


def test_a_masked_mean_is_that_of_its_tokens_alone() -> None:
    head, latents, conditions = build(), normal(TOKENS, 3), normal(TOKENS, 5, seed=1)
    noise, times = normal(4, TOKENS, 3, seed=2), torch.rand(4, TOKENS)
    mask = torch.arange(TOKENS) % 3 == 0
    spoilt = latents.masked_fill(~mask[:, None], math.nan)
    found = head.loss(spoilt, conditions, mask=mask, noise=noise, times=times)
    alone = head.loss(latents[mask], conditions[mask], noise=noise[:, mask], times=times[:, mask])
    assert torch.equal(found, alone) and found.isfinite()
    found.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in head.parameters())


def test_a_token_knows_nothing_of_the_others_and_of_their_order() -> None:
    head, conditions, order = build(), normal(TOKENS, 5), torch.randperm(TOKENS)
    noise, latents, times = normal(TOKENS, 3, seed=1), normal(TOKENS, 3, seed=2), torch.rand(4, TOKENS)
    drawn = draw_latents(head, conditions, noise, steps=4)
    torch.testing.assert_close(draw_latents(head, conditions[order], noise[order], steps=4), drawn[order])
    torch.testing.assert_close(draw_latents(head, conditions[7:8], noise[7:8], steps=4), drawn[7:8])
    many = normal(4, TOKENS, 3, seed=3)
    losses = [
        head.loss(latents[which], conditions[which], noise=many[:, which], times=times[:, which])
        for which in (slice(None), order)
    ]
    torch.testing.assert_close(*losses)


def test_bfloat16_meets_float32() -> None:
    """Hidden states of a bfloat16 model, weights that DeepSpeed made bfloat16, autocast: the flow stays float32."""
    head, latents, conditions = build(), normal(TOKENS, 3), normal(TOKENS, 5, seed=1).bfloat16()
    noise, times = normal(4, TOKENS, 3, seed=2), torch.linspace(0.01, 0.99, 4 * TOKENS).view(4, TOKENS)
    plain = head.loss(latents, conditions.float(), noise=noise, times=times)
    drawn = draw_latents(head, conditions.float(), noise[0], steps=4)
    assert torch.equal(head.loss(latents, conditions, noise=noise, times=times), plain)
    with torch.autocast("cpu", torch.bfloat16):
        cast = [
            (
                head.loss(latents, conditions, noise=noise, times=times),
                draw_latents(head, conditions, noise[0], steps=4),
            )
        ]
    head.bfloat16()
    cast.append(
        (head.loss(latents, conditions, noise=noise, times=times), draw_latents(head, conditions, noise[0], steps=4))
    )
    for loss, there in cast:
        assert loss.dtype == there.dtype == torch.float32
        torch.testing.assert_close(loss, plain, rtol=0.02, atol=0)
        assert float((there - drawn).abs().mean()) < 0.02 * float(drawn.std())


@settings(max_examples=40, deadline=None)
@given(mean=st.floats(-1e3, 1e3), deviation=st.floats(1e-3, 1e3), value=st.floats(-5, 5))
def test_scaling_there_and_back(mean: float, deviation: float, value: float) -> None:
    head = build(mean=(mean,), deviation=(deviation,))
    latents = torch.tensor([[mean + value * deviation]])
    assert float(head.standardise(latents)) == pytest.approx(value, abs=1e-3 + 1e-6 * abs(mean) / deviation)
    torch.testing.assert_close(head.unstandardise(head.standardise(latents)), latents, rtol=1e-5, atol=1e-5)


def exact(mean: float, deviation: float) -> Any:
    """The velocity whose flow takes a standard normal to N(mean, deviation^2): E[n - x | x_t]."""

    def velocity(points: Tensor, times: Tensor) -> Tensor:
        t = times[:, None]
        variance = (1 - t) ** 2 * deviation**2 + t**2
        centred = points - (1 - t) * mean
        return (t - (1 - t) * deviation**2) / variance * centred - mean

    return velocity


def test_the_flow_of_a_gaussian_ends_in_its_mean_and_deviation() -> None:
    noise = normal(20_000, 1)
    goal = 3.0 + 0.5 * noise  # the flow of a Gaussian moves every point along its own quantile
    errors = {}
    for solver, steps in (("euler", 8), ("euler", 200), ("heun", 8)):
        found = follow(exact(3.0, 0.5), noise, steps=steps, solver=solver)  # type: ignore[arg-type]
        errors[solver, steps] = float((found - goal).abs().mean())
    assert errors["euler", 200] < 0.01 and errors["heun", 8] < 0.02
    assert errors["heun", 8] < errors["euler", 8] / 3


def test_a_trained_head_draws_what_it_learned() -> None:
    """Two conditions, each with a Gaussian of its own."""
    torch.manual_seed(0)
    head = DiffusionHead(DiffusionHeadConfig(condition_dim=1, mean=(0.0,), deviation=(2.0,), width=32, depth=2))
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    which = torch.arange(512)[:, None] % 2
    centre, spread = which * 4.0 - 2.0, 0.3 + 0.7 * which
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 300)
        loss = head.loss(centre + spread * torch.randn(512, 1), which.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    conditions = torch.tensor([[0.0], [1.0]]).repeat_interleave(2000, 0)
    # Euler's steps alone, of the exact flow, draw too narrowly: 10 % with 16 of them, 3 % with 64; Heun's 16 do not.
    for solver, steps in (("euler", 64), ("heun", 16)):
        drawn = draw_latents(head, conditions, normal(4000, 1), steps=steps, solver=solver).view(2, 2000)  # type: ignore[arg-type]
        assert drawn.mean(1).tolist() == pytest.approx([-2.0, 2.0], abs=0.15)
        assert drawn.std(1).tolist() == pytest.approx([0.3, 1.0], rel=0.15)
    assert draw_latents(head, conditions, normal(4000, 1), temperature=0.0).view(2, 2000).std(1).max() < 1e-4


def test_noise_is_a_function_of_its_place() -> None:
    samples, positions = torch.arange(200).repeat_interleave(50), torch.arange(50).repeat(200)
    noise = starting_noise(7, samples, positions, 4)
    assert noise.shape == (10_000, 4) and bool(noise.isfinite().all())
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    assert torch.equal(starting_noise(7, samples[123:124], positions[123:124], 4), noise[123:124])
    for other in (
        starting_noise(8, samples, positions, 4),
        starting_noise(7, samples, positions, 4, step=1),
        starting_noise(7, positions, samples, 4),
    ):
        assert abs(float(torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1])) < 0.02


def test_guidance_of_one_is_off_and_more_goes_further() -> None:
    head, conditions, nulls, noise = build(), normal(TOKENS, 5), torch.zeros(TOKENS, 5), normal(TOKENS, 3, seed=1)
    plain = draw_latents(head, conditions, noise, steps=3)
    assert torch.equal(draw_latents(head, conditions, noise, steps=3, null_conditions=nulls), plain)
    same = draw_latents(head, conditions, noise, steps=3, guidance_scale=3.0, null_conditions=conditions)
    torch.testing.assert_close(same, plain)
    # In one step the way is a straight line.
    one, none, more = (
        draw_latents(head, conditions, noise, steps=1, guidance_scale=scale, null_conditions=nulls)
        for scale in (1.0, 0.0, 3.0)
    )
    torch.testing.assert_close(more - none, 3 * (one - none), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"deviation": (1.0, 1.0, 0.0)}, "a channel that never changes"),
        ({"mean": (0.0, math.nan, 0.0)}, "mean must be finite"),
        ({"mean": (0.0,)}, "a number for each channel, got 1 and 3"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"time_deviation": 0.0}, "time_deviation must be positive"),
    ],
)
def test_impossible_heads_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(**change)


def test_what_cannot_be_drawn_is_refused() -> None:
    head, conditions, noise = build(), normal(4, 5), normal(4, 3)
    for change, words in (
        ({"steps": 0}, "steps must be at least 1"),
        ({"solver": "hein"}, "unknown solver 'hein': did you mean 'heun'"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"temperature": math.nan}, "temperature must be at least 0"),
        ({"guidance_scale": math.nan, "null_conditions": conditions}, "guidance_scale must be finite"),
        ({"guidance_scale": 2.0}, "give them, or leave it at 1.0"),
    ):
        with pytest.raises(ModelError, match=words):
            draw_latents(head, conditions, noise, **change)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"4 conditions need noise \[4,3\], got \[3, 3\]"):
        draw_latents(head, conditions, noise[:3])
    with pytest.raises(ShapeError, match=r"expected conditions \[N,5\], got \[4, 6\]"):
        draw_latents(head, normal(4, 6), noise)
    with pytest.raises(ShapeError, match=r"expected null_conditions \[4, 5\], got \[1, 5\]"):
        draw_latents(head, conditions, noise, guidance_scale=2.0, null_conditions=conditions[:1])


def test_a_loss_of_other_shapes_is_refused() -> None:
    head, conditions, noise = build(), normal(4, 5), normal(4, 3)
    for change, words in (
        ({"latents": noise[:, :2]}, r"expected latents \[4, 3\], got \[4, 2\]"),
        ({"conditions": normal(4, 6)}, r"expected conditions \[4, 5\], got \[4, 6\]"),
        ({"noise": noise}, r"expected noise \[4, 4, 3\], got \[4, 3\]"),
        ({"noise": noise[None], "times": torch.rand(2, 4)}, r"expected times \[1, 4\], got \[2, 4\]"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"expected mask \[4\], got \[3\]"),
        ({"mask": torch.ones(4, dtype=torch.int64)}, "mask must be bool, got torch.int64"),
    ):
        with pytest.raises(ShapeError, match=words):
            head.loss(**{"latents": noise, "conditions": conditions, **change})
    with pytest.raises(ShapeError, match="the mask leaves none"):
        head.loss(noise, conditions, mask=torch.zeros(4, dtype=torch.bool))


def results() -> dict[str, Any]:
    """What the golden file holds."""
    head, samples = build(), torch.arange(6)
    conditions = torch.sin(torch.arange(30.0)).view(6, 5)
    noise = starting_noise(1, samples, samples + 3, 3)
    times = torch.linspace(0.1, 0.9, 6)[None]
    loss = head.loss(torch.cos(torch.arange(18.0)).view(6, 3), conditions, noise=noise[None], times=times)
    drawn = {
        solver: draw_latents(
            head, conditions, noise, steps=5, solver=solver, guidance_scale=2.0, null_conditions=-conditions
        )
        for solver in ("euler", "heun")
    }
    found = {"noise": noise, "loss": loss, **drawn}
    return {name: [round(float(value), 5) for value in values.detach().flatten()] for name, values in found.items()}


def test_the_arithmetic_has_not_changed() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert results() == {name: pytest.approx(values, abs=2e-4) for name, values in golden.items()}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(results()) + "\n", encoding="utf-8")
