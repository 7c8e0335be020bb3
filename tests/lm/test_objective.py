"""The objective against plain cross-entropy, on models of which the head is all and on others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from tests.lm.tiny import GROUPED, build_model
from tokvid_lm import VideoLM
from tokvid_lm.collate import IGNORED
from tokvid_lm.objectives.next_token import NextTokenObjective

OFFSET = 100


def soft_capped() -> PreTrainedModel:
    torch.manual_seed(1)
    config = Gemma2Config(vocab_size=259, **GROUPED, final_logit_softcapping=2.0, initializer_range=0.2)
    return Gemma2ForCausalLM(config).eval()


def build(family: str) -> PreTrainedModel:
    return soft_capped() if family == "gemma2" else build_model(family, tied=family == "llama")


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(0, 259, (3, 12))
    labels = ids.masked_fill(torch.rand(3, 12) < 0.4, IGNORED)
    return ids, labels


def reference(model: PreTrainedModel, text_weight: float, num_items: int) -> Tensor:
    ids, labels = batch()
    targets = labels[:, 1:].flatten()
    losses = F.cross_entropy(
        model(input_ids=ids).logits[:, :-1].flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="none"
    )
    weights = torch.where(targets >= OFFSET, 1.0, text_weight)
    return (losses * weights).sum() / num_items


@pytest.mark.parametrize(
    ("family", "direct"), [("llama", True), ("gpt_neox", True), ("gemma", True), ("gemma2", False)]
)
def test_the_objective_is_cross_entropy_and_so_is_its_gradient(
    family: str, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokvid_lm.objectives.next_token.CPU_CHUNK", 16 * 259)  # several chunks
    model, twin = build(family), build(family)
    objective = NextTokenObjective(model, code_offset=OFFSET, text_weight=0.25)
    assert (objective.head is not None) is direct
    expected = reference(twin, 0.25, 50)
    (3.0 * expected).backward()
    with objective.as_forward():
        ids, labels = batch()
        parts: dict[str, Tensor] = model(input_ids=ids, labels=labels, num_items=50)  # type: ignore[assignment]
    (3.0 * parts["loss"]).backward()
    torch.testing.assert_close(parts["loss"], expected)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    targets = labels[:, 1:][labels[:, 1:] != IGNORED]
    assert int(parts["code_count"]) == int((targets >= OFFSET).sum())
    assert int(parts["code_count"] + parts["text_count"]) == len(targets)
    nats = float(parts["code_nats"] + 0.25 * parts["text_nats"])
    assert nats / 50 == pytest.approx(expected.item(), rel=1e-5)
    assert hasattr(model(input_ids=ids), "logits"), "the model's own forward is not back"


@pytest.mark.parametrize("initializer_range", [1e-4, 0.02, 0.5])
def test_a_model_that_changes_its_logits_is_asked_for_them_however_small_they_are(initializer_range: float) -> None:
    small = {"vocab_size": 259, **GROUPED, "initializer_range": initializer_range}
    capped = Gemma2ForCausalLM(Gemma2Config(**small))  # at 30, its default
    uncapped = Gemma2ForCausalLM(Gemma2Config(**small, final_logit_softcapping=None))
    scaled = CohereForCausalLM(CohereConfig(**small, logit_scale=0.9))
    heads = [NextTokenObjective(model, code_offset=OFFSET).head is not None for model in (capped, uncapped, scaled)]
    assert heads == [False, True, False]
    assert not uncapped.lm_head._forward_pre_hooks


def test_the_objective_under_autocast_is_close(video_lm: VideoLM) -> None:
    ids, labels = batch()
    objective = NextTokenObjective(video_lm.model, code_offset=OFFSET)
    with torch.no_grad():
        plain = objective(ids, labels)["loss"]
        with torch.autocast("cpu", torch.bfloat16):
            assert float(objective(ids, labels)["loss"]) == pytest.approx(float(plain), rel=0.02)
