"""Adapters learn, what text uses stays, and what is saved is a plain model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.lm.tiny import FAMILIES, build_model, build_tokenizer
from tests.lm.tiny_run import recipe, train
from tokvid.errors import CheckpointError, ConfigError, ModelError
from tokvid.optimizer import AdamWConfig, build_optimizer
from tokvid_lm import VideoLM
from tokvid_lm.lora import LoRAConfig, insert_adapters, merge_adapters
from tokvid_lm.training import adam_names
from tokvid_lm.training_config import LMRecipe, PretrainedModelConfig
from tokvid_tokenizers import load_codec

PeftModel = pytest.importorskip("peft").PeftModel
CODEC = load_codec("preset:tiny")


def extended(family: str, *, tied: bool = False) -> VideoLM:
    return VideoLM.extend(build_model(family, tied=tied), codec=CODEC, tokenizer=build_tokenizer())


def logits(lm: VideoLM) -> Tensor:
    with torch.no_grad():
        found: Tensor = lm.model(input_ids=torch.arange(12).unsqueeze(0)).logits
    return found


def step(lm: VideoLM, learning_rate: float) -> None:
    """One step of plain gradient descent on what comes next, over text and codes."""
    ids = torch.cat([torch.arange(12), torch.arange(lm.vocabulary.code_offset, lm.vocabulary.code_offset + 12)])
    lm.model(input_ids=ids.unsqueeze(0), labels=ids.unsqueeze(0)).loss.backward()
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.grad is not None:
                parameter -= learning_rate * parameter.grad
                parameter.grad = None


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_change_nothing_at_first_and_are_added_at_last(family: str, tied: bool) -> None:
    lm = extended(family, tied=tied)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    at_first, rows = logits(lm), lm.vocabulary.text_size
    insert_adapters(lm.model, LoRAConfig(rank=2), first_new_row=rows)
    assert torch.allclose(logits(lm), at_first)
    for _ in range(2):  # the first step moves one half of each adapter alone
        step(lm, 0.5)
    learned = logits(lm)
    assert not torch.allclose(learned, at_first, atol=1e-3)
    merge_adapters(lm.model)
    assert torch.allclose(logits(lm), learned, atol=1e-4)
    after = lm.model.state_dict()
    assert set(after) == set(before)
    assert all(parameter.requires_grad for parameter in lm.model.parameters())
    tables = {
        id(module.weight): module.weight
        for module in (lm.model.get_input_embeddings(), lm.model.get_output_embeddings())
    }  # type: ignore[union-attr]
    names = [name for name, parameter in lm.model.named_parameters() if id(parameter) in tables]
    for name in names:
        assert torch.equal(after[name][:rows], before[name][:rows])
        assert not torch.equal(after[name][rows:], before[name][rows:])
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert any("layers" in name for name in changed) and not any("norm" in name for name in changed)
    step(lm, 0.1)  # text rows can be trained again
    assert not torch.equal(lm.model.get_input_embeddings().weight[:rows], before[names[0]][:rows])  # type: ignore[union-attr]


def lora_recipe(output: Path, base: Path, **lora: object) -> LMRecipe:
    model = PretrainedModelConfig(name=str(base), lora=LoRAConfig(rank=2, **lora))  # type: ignore[arg-type]
    plain = recipe(
        output, steps=6, checkpoint_every=3, optimizer={"kind": "adamw", "learning_rate": 0.02, "weight_decay": 0.1}
    )
    return replace(plain, model=model)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_model("llama", tied=True).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def test_a_run_saves_a_plain_model_whose_text_rows_are_as_they_were(base: Path, tmp_path: Path) -> None:
    trained = train(lora_recipe(tmp_path / "run", base), CODEC)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "lm")
    assert sorted(plain.state_dict()) == sorted(extended("llama", tied=True).model.state_dict())
    rows, original = trained.lm.vocabulary.text_size, build_model("llama", tied=True).get_input_embeddings().weight  # type: ignore[union-attr]
    assert torch.equal(plain.get_input_embeddings().weight[:rows], original[:rows])
    assert trained.losses.validation["next_token"] > 0


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_are_files_too_which_peft_reads(tied: bool, tmp_path: Path) -> None:
    build_model("llama", tied=tied).save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    trained = train(lora_recipe(tmp_path / "run", tmp_path / "base"), CODEC).lm
    adapters = tmp_path / "run" / "adapters"
    assert not (adapters / "config.json").exists() and not (adapters / "model.safetensors").exists()
    ids = torch.arange(0, trained.vocabulary.total_size, 3)[None]
    with torch.no_grad():
        expected = trained.model(ids).logits
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        plain.resize_token_embeddings(trained.vocabulary.total_size)
        torch.testing.assert_close(PeftModel.from_pretrained(plain, adapters)(ids).logits, expected, atol=1e-4, rtol=0)
    again = VideoLM.from_pretrained(adapters)
    state = again.model.state_dict()
    assert state.keys() == trained.model.state_dict().keys()
    for name, tensor in trained.model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, atol=1e-6, rtol=0)
    assert again.settings == trained.settings and again.codec.codec_id == trained.codec.codec_id
    assert VideoLM.from_pretrained(adapters, dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_adapters_of_another_model_are_refused(base: Path, tmp_path: Path) -> None:
    train(lora_recipe(tmp_path / "run", base), CODEC)
    adapters = tmp_path / "run" / "adapters"
    path = adapters / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for name, words in [("nowhere/at-all", "nowhere/at-all"), (str(tmp_path / "other"), "are not of")]:
        build_model("gpt_neox").save_pretrained(tmp_path / "other")
        path.write_text(json.dumps({**config, "base_model_name_or_path": name}), encoding="utf-8")
        with pytest.raises(ModelError, match=words):
            VideoLM.from_pretrained(adapters)
    path.write_text(json.dumps({**config, "base_model_name_or_path": None}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="does not say of which model its adapters are"):
        VideoLM.from_pretrained(adapters)
    path.write_text(json.dumps(config), encoding="utf-8")
    (adapters / "adapter_model.safetensors").rename(adapters / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"holds its weights in adapter_model\.bin, and reading that would run"):
        VideoLM.from_pretrained(adapters)
    (adapters / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is missing"):
        VideoLM.from_pretrained(adapters)


def test_a_run_that_was_cut_short_goes_on_to_the_same_weights(base: Path, tmp_path: Path) -> None:
    whole = train(lora_recipe(tmp_path / "whole", base, dropout=0.1), CODEC)
    cut = lora_recipe(tmp_path / "cut", base, dropout=0.1)
    train(cut, CODEC)
    for newest in (tmp_path / "cut" / name for name in ("step-000006", "lm", "adapters")):
        for path in sorted(newest.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        newest.rmdir()
    again = train(cut, CODEC, resume=True)
    ours, theirs = again.lm.model.state_dict(), whole.lm.model.state_dict()
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_new_rows_learn_at_their_own_rate() -> None:
    lm = extended("llama", tied=True)
    insert_adapters(lm.model, LoRAConfig(rank=2), first_new_row=lm.vocabulary.text_size)
    config = AdamWConfig(learning_rate=0.01)
    optimizer = build_optimizer(config, lm.model, undecayed=adam_names(lm.model), undecayed_rate=4.0)
    adapters, rows = optimizer.param_groups
    assert (adapters["lr"], rows["lr"], rows["weight_decay"]) == (0.01, 0.04, 0.0)
    assert [list(parameter.shape) for parameter in rows["params"]] == [
        [lm.vocabulary.total_size - lm.vocabulary.text_size, 32]
    ]
    assert all(min(parameter.shape) == 2 for parameter in adapters["params"])


def test_what_adapters_cannot_do_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"lora targets \['queries'\]: "):
        insert_adapters(build_model("llama"), LoRAConfig(targets=("queries",)), first_new_row=1)
    for target in ("lm_head", "embed_tokens"):
        with pytest.raises(ModelError, match=f"{target}.*name the embedding or the head"):
            insert_adapters(build_model("llama", tied=True), LoRAConfig(targets=(target, "q_proj")), first_new_row=1)
    with pytest.raises(ConfigError, match="rank must be at least 1, got 0"):
        LoRAConfig(rank=0)
    muon = recipe(tmp_path / "run", optimizer={"kind": "muon"})
    with pytest.raises(ConfigError, match=r"model\.lora is trained with adamw"):
        replace(muon, model=PretrainedModelConfig(name=str(base), lora=LoRAConfig()))
