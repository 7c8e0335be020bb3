"""The objective against plain cross-entropy, on models of which the head is all and on others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from tests.lm.tiny import GROUPED, build_model, build_vocabulary
from tokvid.errors import ConfigError
from tokvid_lm.document import IGNORED, TEXT
from tokvid_lm.head import plain_head
from tokvid_lm.loss_parts import LossParts
from tokvid_lm.mask_spec import MaskSpec
from tokvid_lm.objectives.cross_entropy import head_cross_entropy
from tokvid_lm.objectives.video_objective import LossConfig, VideoObjective
from tokvid_lm.vocabulary import MODES

VOCABULARY = build_vocabulary(codebook_size=30, num_codebooks=2, text_size=260)
ROWS = VOCABULARY.total_size


def soft_capped() -> PreTrainedModel:
    torch.manual_seed(1)
    config = Gemma2Config(vocab_size=ROWS, **GROUPED, final_logit_softcapping=2.0, initializer_range=0.2)
    return Gemma2ForCausalLM(config).eval()


def build(family: str) -> PreTrainedModel:
    return soft_capped() if family == "gemma2" else build_model(family, tied=family == "llama", rows=ROWS)


def batch() -> dict[str, Tensor]:
    """Two rows of random ids with labels of every kind; the second is padded."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(ROWS, (2, 14), generator=generator)
    labels = torch.randint(VOCABULARY.code_offset, (2, 14), generator=generator)
    codes = torch.randint(VOCABULARY.code_offset, ROWS, (2, 14), generator=generator)
    labels = torch.where(torch.rand(2, 14, generator=generator) < 0.7, codes, labels)
    labels[torch.rand(2, 14, generator=generator) < 0.2] = IGNORED
    labels[1, 10:] = IGNORED
    is_text = labels < VOCABULARY.code_offset
    frame = torch.where(is_text, TEXT, torch.arange(14) // 5)
    mode = torch.where(is_text, 0, torch.arange(14) % 3)
    spec = MaskSpec.packed_causal([[14], [10]])
    return {
        "input_ids": ids,
        "labels": labels,
        "frame": frame,
        "mode": mode,
        "position_ids": spec.order,
        "document": spec.document,
        "order": spec.order,
        "block": spec.block,
        "ghost": spec.ghost,
    }


def reference(model: PreTrainedModel, loss: LossConfig, num_items: int) -> tuple[Tensor, Tensor]:
    """The loss label by label with everything written out, and the plain cross-entropies."""
    inputs = batch()
    logits = model(input_ids=inputs["input_ids"]).logits.flatten(0, 1).float()
    total, nats = logits.new_zeros(()), []
    offset = VOCABULARY.code_offset
    for place, label in enumerate(inputs["labels"].flatten().tolist()):
        if label == IGNORED:
            continue
        frame, mode = int(inputs["frame"].flatten()[place]), int(inputs["mode"].flatten()[place])
        allowed = torch.zeros(ROWS, dtype=torch.bool)
        if not loss.sliced:
            allowed[:] = True
        elif label < offset:
            allowed[:offset] = True
        else:
            slot = VOCABULARY.slot_range((label - offset) // 30)
            allowed[slot.start : slot.stop] = True
        row = logits[place].masked_fill(~allowed, float("-inf"))
        log_probability = row.log_softmax(0)
        nats.append(-log_probability[label].detach())
        smoothing = loss.label_smoothing if label >= offset and MODES[mode] != "next_token" else 0.0
        each = (1 - smoothing) * -log_probability[label] - smoothing * log_probability[allowed].mean()
        each = each + loss.z_loss * row.logsumexp(0) ** 2
        weight = loss.text_weight if label < offset else loss.early_weight if frame < loss.early_frames else 1.0
        total = total + each * weight
    return total / num_items, torch.stack(nats)


LOSSES = {
    "plain": LossConfig(),
    "everything": LossConfig(text_weight=0.25, early_frames=2, early_weight=3.0, label_smoothing=0.1, z_loss=1e-2),
    "all columns": LossConfig(sliced=False, text_weight=0.5, z_loss=1e-3, label_smoothing=0.05),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(
    ("family", "direct"), [("llama", True), ("gpt_neox", True), ("gemma", True), ("gemma2", False)]
)
def test_the_objective_is_cross_entropy_and_so_is_its_gradient(
    family: str, direct: bool, loss: LossConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokvid_lm.objectives.cross_entropy.CPU_CHUNK", 16 * 30)  # several chunks
    monkeypatch.setattr("tokvid_lm.objectives.cross_entropy.LEAST_ROWS", 16)
    model, twin = build(family), build(family)
    objective = VideoObjective(model, VOCABULARY, loss)
    assert (objective.head is not None) is direct
    expected, nats = reference(twin, loss, 50)
    (3.0 * expected).backward()
    with objective.as_forward():
        parts: dict[str, Tensor] = model(**batch(), num_items=50)  # type: ignore[assignment]
    (3.0 * parts["loss"]).backward()
    torch.testing.assert_close(parts["loss"], expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert int(parts["count"].sum()) == len(nats)
    assert float(parts["nats"].sum()) == pytest.approx(float(nats.sum()), rel=1e-5)
    assert hasattr(model(input_ids=batch()["input_ids"]), "logits"), "the model's own forward is not back"


def test_the_log_tells_text_modes_and_frames_apart() -> None:
    objective = VideoObjective(build("llama"), VOCABULARY, max_frames=2)
    with torch.no_grad():
        parts = objective(**batch())
    log = LossParts(parts["nats"].tolist(), parts["count"].tolist())
    labels, mode = batch()["labels"], batch()["mode"]
    is_code = labels >= VOCABULARY.code_offset
    assert log.codes == int(is_code.sum())
    assert set(log.by_mode()) == set(MODES) and log.text() is not None
    assert set(log.by_frame()) == {f"bits/{name}/frame {frame}" for name in MODES for frame in (0, 1)}
    for number, name in enumerate(MODES):
        count = sum(parts["count"][1 + 2 * number : 3 + 2 * number].tolist())
        assert count == int((is_code & (mode == number)).sum()), name
    assert LossParts([0.0] * 7, [0.0] * 7).summary() == {}


def test_modes_may_count_differently() -> None:
    weighted = VideoObjective(build("llama"), VOCABULARY, mode_weights={"maskgit": 0.0, "frame": 2.0})
    plain = VideoObjective(build("llama"), VOCABULARY)
    inputs = batch()
    only_maskgit = inputs | {"mode": torch.ones_like(inputs["mode"])}
    is_code = inputs["labels"] >= VOCABULARY.code_offset
    codes = inputs | {"labels": inputs["labels"].masked_fill(~is_code, IGNORED)}
    with torch.no_grad():
        assert float(weighted(**(codes | {"mode": only_maskgit["mode"]}))["loss"]) == 0.0
        as_frame = codes | {"mode": 2 * only_maskgit["mode"]}
        assert float(weighted(**as_frame)["loss"]) == pytest.approx(2 * float(plain(**as_frame)["loss"]), rel=1e-6)


@pytest.mark.parametrize("initializer_range", [1e-4, 0.02, 0.5])
def test_a_model_that_changes_its_logits_is_asked_for_them_however_small_they_are(initializer_range: float) -> None:
    small = {"vocab_size": 259, **GROUPED, "initializer_range": initializer_range}
    capped = Gemma2ForCausalLM(Gemma2Config(**small))  # at 30, its default
    uncapped = Gemma2ForCausalLM(Gemma2Config(**small, final_logit_softcapping=None))
    scaled = CohereForCausalLM(CohereConfig(**small, logit_scale=0.9))
    assert [plain_head(model) is not None for model in (capped, uncapped, scaled)] == [False, True, False]
    assert not uncapped.lm_head._forward_pre_hooks


def test_the_objective_under_autocast_is_close() -> None:
    objective = VideoObjective(build("llama"), VOCABULARY)
    with torch.no_grad():
        plain = objective(**batch())["loss"]
        with torch.autocast("cpu", torch.bfloat16):
            assert float(objective(**batch())["loss"]) == pytest.approx(float(plain), rel=0.02)


def test_sliced_is_full_with_the_other_columns_at_minus_infinity() -> None:
    head = nn.Linear(16, 200)
    hidden = torch.randn(40, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets, weights = torch.randint(50, 90, (40,)), torch.rand(40)
    loss, nats = head_cross_entropy(hidden, head, targets, weights, columns=(50, 90))
    (gradient,) = torch.autograd.grad(loss, hidden)
    logits = head(hidden).masked_fill(~((torch.arange(200) >= 50) & (torch.arange(200) < 90)), float("-inf"))
    each = F.cross_entropy(logits, targets, reduction="none")
    (expected,) = torch.autograd.grad((each * weights).sum(), hidden)
    torch.testing.assert_close(nats, each, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"text_weight": -1.0}, {"label_smoothing": 1.5}, {"z_loss": float("inf")}])
def test_losses_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        LossConfig(**wrong)  # type: ignore[arg-type]
