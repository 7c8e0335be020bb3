"""The adversary: its losses are the formulas, its weight rises without a jump, and it takes part in an exact run."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tokenizers.lively import noise
from tests.tokenizers.tiny_run import assert_same_run, killed_at, lines, recipe
from tokvid.data.clips import ClipArray
from tokvid.errors import ConfigError
from tokvid.optimizer import AdamWConfig
from tokvid_tokenizers import load_codec
from tokvid_tokenizers.adversary import Adversary
from tokvid_tokenizers.discriminator import Discriminator, DiscriminatorConfig
from tokvid_tokenizers.losses.adversarial import (
    AdversarialConfig,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    lecam_loss,
    r1_loss,
)
from tokvid_tokenizers.quantizers import LFQConfig, ResidualConfig, VQConfig
from tokvid_tokenizers.training import train_codec
from tokvid_tokenizers.training_config import CodecRecipe

SMALL = DiscriminatorConfig(channels=8, layers=2)
CPU = torch.device("cpu")


def test_the_losses_are_those_of_the_papers() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert float(discriminator_loss("hinge", real, fake)) == pytest.approx((0.25 + 0.5) / 2)
    assert float(generator_loss("hinge", fake)) == pytest.approx(1.5)
    soft = torch.nn.functional.softplus
    expected = (soft(-real).mean() + soft(fake).mean()) / 2
    assert float(discriminator_loss("non_saturating", real, fake)) == pytest.approx(float(expected))
    assert float(generator_loss("non_saturating", fake)) == pytest.approx(float(soft(-fake).mean()))
    # max(0, real - (-1))^2 = 9, 2.25; max(0, 1 - fake)^2 = 16, 1
    assert float(lecam_loss(real, fake, torch.tensor(1.0), torch.tensor(-1.0))) == pytest.approx(5.625 + 8.5)


def test_r1_is_half_the_squared_gradient_of_a_clip() -> None:
    frames = noise(2, 3, 1, 4, 4).requires_grad_()
    slope = noise(1, 3, 1, 4, 4, seed=1)
    penalty = r1_loss((frames * slope).sum((1, 2, 3, 4)), frames)
    assert float(penalty) == pytest.approx(float(slope.square().sum()) / 2, rel=1e-5)


def test_the_adaptive_weight_makes_gradients_equally_long() -> None:
    layer = torch.ones(3, requires_grad=True)
    weight = adaptive_weight((layer * 2).sum(), (layer * 0.01).sum(), layer)
    assert float(weight) == pytest.approx(2 * 3**0.5 / (0.01 * 3**0.5 + 1e-4), rel=1e-4)
    assert not weight.requires_grad
    assert float(adaptive_weight((layer * 1e9).sum(), (layer * 0).sum(), layer)) == 1e4


def test_the_weight_begins_late_and_rises_evenly() -> None:
    config = AdversarialConfig(weight=0.5, start_step=10, warmup_steps=5, ramp_steps=4)
    assert [config.weight_at(step) for step in (0, 14, 15, 16, 18, 19, 1000)] == [0, 0, 0.125, 0.25, 0.5, 0.5, 0.5]
    assert AdversarialConfig(weight=0.5, warmup_steps=0, ramp_steps=0).weight_at(0) == 0.5


@pytest.mark.parametrize("sees", ["frames", "clips"])
def test_a_verdict_is_of_its_own_patch(sees: Any) -> None:
    torch.manual_seed(0)
    network = Discriminator(dataclasses.replace(SMALL, sees=sees))
    frames = noise(2, 3, 5, 32, 32)
    logits = network(frames)
    assert logits.shape[0] == (10 if sees == "frames" else 2)
    changed = frames.clone()
    changed[1, :, :, 24:, 24:] = noise(3, 5, 8, 8, seed=1)
    other = network(changed)
    same = torch.eq(logits, other)
    assert same[: len(logits) // 2].all() and same.any() and not same.all()


@pytest.mark.parametrize("layers", [1, 3])
def test_single_pictures_are_judged_as_the_whole_kernel_would(layers: int) -> None:
    discriminator = Discriminator(DiscriminatorConfig(sees="clips", channels=8, layers=layers))
    pictures = noise(2, 3, 1, 32, 32)
    features = pictures
    for layer in discriminator.layers:
        features = layer.conv(features)
        features = features if layer.norm is None else layer.norm(features.movedim(1, -1)).movedim(-1, 1)
        features = torch.nn.functional.leaky_relu(features, 0.2)
    expected = discriminator.head(features).flatten(1)
    torch.testing.assert_close(discriminator(pictures), expected, atol=1e-5, rtol=1e-4)
    # Processors with AMX gave NaN here, from what lay in memory before: several times, so that one of them meets it.
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(5):
            torch.testing.assert_close(discriminator(pictures).float(), expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("sees", ["frames", "clips"])
@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_it_learns_to_tell_and_the_codec_to_please(sees: Any, kind: Any) -> None:
    torch.manual_seed(0)
    config = AdversarialConfig(
        weight=1.0,
        kind=kind,
        adaptive=False,
        warmup_steps=0,
        ramp_steps=0,
        r1=0.01,
        r1_every=4,
        discriminator=dataclasses.replace(SMALL, sees=sees),
        optimizer=AdamWConfig(learning_rate=0.01),
    )
    adversary = Adversary(config, CPU)
    real, fake = noise(4, 3, 3, 16, 16), noise(4, 3, 3, 16, 16, seed=1) * 0.2
    for step in range(30):
        figures = adversary.learn(step, real, fake, 1.0)
    assert figures["real"] > figures["fake"] + 0.5
    assert "r1" in adversary.learn(32, real, fake, 1.0) and "r1" not in figures
    assert adversary.real_average > adversary.fake_average
    reconstruction = fake.clone().requires_grad_()
    losses = []
    for _ in range(10):
        loss = adversary.codec_loss(0, reconstruction, reconstruction.sum(), reconstruction)
        assert loss is not None
        (gradient,) = torch.autograd.grad(loss, reconstruction)
        reconstruction = (reconstruction - 0.05 * gradient.sign()).detach().requires_grad_()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is None and p.requires_grad for p in adversary.network.parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"weight": -1.0},
        {"lecam_decay": 1.0},
        {"r1_every": 0},
        {"start_step": -1},
        {"weight": float("nan")},
        {"kind": "wasserstein"},
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    from tokvid.config import from_mapping

    with pytest.raises(ConfigError):
        from_mapping(AdversarialConfig, change)


ADVERSARIAL = AdversarialConfig(
    start_step=2, warmup_steps=2, ramp_steps=4, r1=0.1, r1_every=3, discriminator=SMALL, weight=0.5
)
EVERYTHING = {"adversarial": ADVERSARIAL, "average_decay": 0.9}
QUANTIZERS = {
    "vq": VQConfig(codebook_size=32, dim=3, restart_below=0.5),
    "residual lfq": ResidualConfig(depth=2, quantizer=LFQConfig(codebook_size=8)),
}


def run_of(output: Path, quantizer: str) -> CodecRecipe:
    plain = recipe(output, **EVERYTHING)
    return dataclasses.replace(plain, codec=dataclasses.replace(plain.codec, quantizer=QUANTIZERS[quantizer]))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_run_with_everything_that_died_is_the_same_run(
    tmp_path: Path, clips: tuple[ClipArray, ClipArray], monkeypatch: pytest.MonkeyPatch, quantizer: str
) -> None:
    """Discriminator, averages of its verdicts and of the weights, codebooks and their restarts: all go on."""
    straight = tmp_path / "straight"
    trained = train_codec(run_of(straight, quantizer), *clips)
    log = lines(straight)
    assert "discriminator" in log[1] and "adversarial" in log[-1] and "adversarial" not in log[1]
    assert log[-1]["perplexity"] > 1 and log[-1]["usage"] > 0
    assert load_codec(trained.folder).codec_id == trained.codec.codec_id
    killed_at(monkeypatch, 9, run_of(tmp_path / "stopped", quantizer), clips)
    train_codec(run_of(tmp_path / "stopped", quantizer), *clips, resume=True)
    assert_same_run(tmp_path / "stopped", straight)


def test_what_is_saved_is_the_average(tmp_path: Path, clips: tuple[ClipArray, ClipArray]) -> None:
    plain = train_codec(recipe(tmp_path / "plain"), *clips).codec
    averaged = train_codec(recipe(tmp_path / "averaged", average_decay=0.5), *clips).codec
    pairs = zip(plain.parameters(), averaged.parameters(), strict=True)
    distance = sum((a - b).detach().square().sum().item() for a, b in pairs)
    assert 0 < distance < 1
    assert lines(tmp_path / "plain")[0]["l2"] == lines(tmp_path / "averaged")[0]["l2"]


def test_a_discriminator_deeper_than_the_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a discriminator of 5 layers .* wants 32 pixels a side, the clips have 16"):
        recipe(tmp_path, adversarial=AdversarialConfig(discriminator=DiscriminatorConfig(layers=5)))


@pytest.mark.slow
@pytest.mark.parametrize("sees", ["frames", "clips"])
def test_a_late_adversary_makes_no_jump(sees: Any, tmp_path: Path, clips: tuple[ClipArray, ClipArray]) -> None:
    late = AdversarialConfig(
        discriminator=DiscriminatorConfig(sees=sees, channels=8, layers=2),
        optimizer=AdamWConfig(learning_rate=1e-3),
        start_step=60,
        warmup_steps=10,
        ramp_steps=20,
    )
    settings: dict[str, Any] = {"steps": 200, "log_every": 1, "validate_every": 1000, "checkpoint_every": 1000}
    settings["optimizer"] = AdamWConfig(learning_rate=3e-3)
    train_codec(recipe(tmp_path, adversarial=late, **settings), *clips)
    psnr = [line["psnr"] for line in lines(tmp_path)]
    windows = [float(np.mean(psnr[start : start + 10])) for start in range(50, 140, 10)]
    assert all(after > before - 0.5 for before, after in pairwise(windows)), windows
    assert windows[-1] > windows[0]
