"""Blocks that are computed twice: the same numbers, the same runs; and what else training asks of every kind."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.tokenizers.lively import ALL_KINDS, NEW_KINDS, noise, smallest_codec
from tests.tokenizers.tiny_run import assert_same_run, killed_at, lines, recipe
from tokvid.data.clips import ClipArray
from tokvid_tokenizers import load_codec
from tokvid_tokenizers.discriminator import DiscriminatorConfig
from tokvid_tokenizers.layers.stack import BlockStack, recompute_blocks
from tokvid_tokenizers.losses.adversarial import AdversarialConfig
from tokvid_tokenizers.training import ADAM_NAMES, train_codec

SIZE = 12


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointing_changes_no_number(kind: str, autocast: bool) -> None:
    codec, frames = smallest_codec(config=ALL_KINDS[kind]).train(), noise(2, 3, 9, SIZE, SIZE)
    calls: list[str] = []
    for name, module in codec.named_modules():
        if isinstance(module, BlockStack):
            for block in module.blocks:
                block.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    results = []
    for enabled in (False, True):
        recompute_blocks(codec, enabled)
        calls.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = codec(frames)
        (output.frames.float() - frames).square().mean().backward()
        gradients = {name: p.grad.clone() for name, p in codec.named_parameters() if p.grad is not None}
        results.append((output.frames.detach(), gradients, len(calls)))
        codec.zero_grad()
    (frames_kept, gradients_kept, once), (frames_again, gradients_again, twice) = results
    assert twice == 2 * once > 0
    assert torch.equal(frames_kept, frames_again)
    assert gradients_kept.keys() == gradients_again.keys() == dict(codec.named_parameters()).keys()
    for name, gradient in gradients_kept.items():
        assert torch.equal(gradient, gradients_again[name]) and gradient.any(), name
    # Streams are never computed twice: what they remember would be remembered twice.
    assert torch.equal(codec.encode(frames), smallest_codec(config=ALL_KINDS[kind]).encode(frames))


def test_a_run_with_checkpointing_is_the_same_run(
    tmp_path: Path, straight: Path, clips: tuple[ClipArray, ClipArray]
) -> None:
    train_codec(recipe(tmp_path, checkpoint_blocks=True), *clips)
    assert_same_run(tmp_path, straight)


def test_a_run_that_had_too_little_memory_goes_on_with_checkpointing(
    tmp_path: Path, straight: Path, clips: tuple[ClipArray, ClipArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at(monkeypatch, 9, recipe(tmp_path), clips)
    train_codec(recipe(tmp_path, checkpoint_blocks=True), *clips, resume=True)
    assert_same_run(tmp_path, straight)


@pytest.mark.parametrize("kind", NEW_KINDS)
def test_it_learns_also_with_an_adversary(tmp_path: Path, clips: tuple[ClipArray, ClipArray], kind: str) -> None:
    """The adversary's weight is found at ``last_layer``, behind blocks that are computed twice."""
    adversarial = AdversarialConfig(
        warmup_steps=2, ramp_steps=4, discriminator=DiscriminatorConfig(channels=8, layers=2)
    )
    plain = recipe(tmp_path, adversarial=adversarial, checkpoint_blocks=True)
    trained = train_codec(dataclasses.replace(plain, codec=NEW_KINDS[kind]), *clips)
    log = lines(tmp_path)
    assert log[-1]["l2"] < 0.8 * log[0]["l2"]
    assert "adversarial" in log[-1]
    assert load_codec(trained.folder).codec_id == trained.codec.codec_id


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_stems_and_heads_are_what_touches_pixels_and_latents(kind: str) -> None:
    codec = smallest_codec(config=ALL_KINDS[kind])
    names = {name for name, _ in codec.named_parameters() if any(part in name for part in ADAM_NAMES)}
    ends = {"encoder.stem.project", "encoder.head", "decoder.stem", "decoder.head.project"}
    assert {name.rpartition(".")[0] for name in names} == ends
    assert codec.last_layer is dict(codec.named_parameters())["decoder.head.project.weight"]
