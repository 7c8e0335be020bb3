"""An extended model knows all it knew before, and its new rows stand among the old ones."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.lm.tiny import FAMILIES, TEXT_SIZE, build_model, build_tokenizer
from tokvid.errors import ModelError
from tokvid_lm import VideoLM
from tokvid_lm.extend import extend
from tokvid_lm.grammar import Grammar, GrammarLogitsProcessor
from tokvid_lm.loading import load_causal_lm, load_tokenizer
from tokvid_lm.vocabulary import SPECIAL_TOKENS
from tokvid_tokenizers import VideoCodec

# Plain, padded so far that the special tokens fall into the padding, and padded a little.
ROWS = (TEXT_SIZE, TEXT_SIZE + 61, TEXT_SIZE + 5)


def _text(seed: int = 0, rows: int = 3, length: int = 11) -> torch.Tensor:
    return torch.randint(256, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_as_before(family: str, tied: bool, rows: int, codec: VideoCodec) -> None:
    model, prompt = build_model(family, tied=tied, rows=rows), _text()
    with torch.no_grad():
        before = model(prompt).logits[..., :TEXT_SIZE].clone()
    old_rows = model.get_input_embeddings().weight[:TEXT_SIZE].clone()

    extended = extend(model, codec, tokenizer=build_tokenizer())

    vocabulary = extended.vocabulary
    assert vocabulary.text_size == TEXT_SIZE
    assert vocabulary.code_offset == max(rows, TEXT_SIZE + len(SPECIAL_TOKENS))
    assert list(vocabulary.special.values()) == list(range(TEXT_SIZE, TEXT_SIZE + len(SPECIAL_TOKENS)))
    with torch.no_grad():
        after = model(prompt).logits
    assert after.shape[-1] == vocabulary.total_size == model.config.vocab_size
    assert float((after[..., :TEXT_SIZE] - before).abs().max()) < 1e-5
    assert torch.equal(model.get_input_embeddings().weight[:TEXT_SIZE], old_rows)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_under_the_grammar_is_as_before(family: str, codec: VideoCodec) -> None:
    model, prompt = build_model(family, tied=True), _text(rows=2)
    arguments = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "max_new_tokens": 20}
    before = model.generate(prompt, **arguments)
    vocabulary = extend(model, codec, tokenizer=build_tokenizer()).vocabulary
    processor = GrammarLogitsProcessor(Grammar.text(vocabulary, [257]), prompt.shape[1])
    after = model.generate(prompt, **arguments, logits_processor=LogitsProcessorList([processor]))
    assert torch.equal(before, after)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma", "gpt_neox"])
def test_new_rows_stand_among_the_text_rows(family: str, tied: bool, codec: VideoCodec) -> None:
    model = build_model(family, tied=tied)
    with torch.no_grad():  # text rows that are neither centred nor equally wide
        for table in {model.get_input_embeddings(), model.get_output_embeddings()}:
            table.weight.mul_(torch.linspace(0.5, 2.0, 32)).add_(torch.linspace(-0.3, 0.3, 32))
    vocabulary = extend(model, codec, tokenizer=build_tokenizer()).vocabulary
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    for weight in tables:
        text = weight[:TEXT_SIZE].detach()
        codes = weight[vocabulary.code_offset :].detach()
        assert torch.allclose(codes.mean(0), text.mean(0), atol=1e-4)
        assert torch.allclose(codes.std(0, correction=0), text.std(0, correction=0), rtol=1e-3)
        assert len(torch.unique(codes, dim=0)) == vocabulary.codebook_size
        special = weight[sorted(vocabulary.special.values())].detach()
        assert len(torch.unique(special, dim=0)) == len(SPECIAL_TOKENS)
        assert 0.5 < float((special - text.mean(0)).std() / (text - text.mean(0)).std()) < 2.0
    if not tied:
        assert not torch.allclose(tables[0][vocabulary.code_offset :], tables[1][vocabulary.code_offset :])


def test_codes_that_look_alike_start_alike(codec: VideoCodec) -> None:
    model = build_model("llama", tied=True)
    vocabulary = extend(model, codec, tokenizer=build_tokenizer()).vocabulary
    rows = model.get_input_embeddings().weight[vocabulary.code_offset :].detach()
    vectors = codec.codebook_vectors()
    order = torch.cdist(vectors[:1], vectors)[0].argsort()
    distance = (rows - rows[0]).norm(dim=1)
    assert float(distance[order[1:20]].mean()) < 0.6 * float(distance[order[-200:]].mean())


def test_the_seed_alone_decides(codec: VideoCodec) -> None:
    def rows(seed: int, noise: int) -> torch.Tensor:
        model = build_model("llama")
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        extend(model, codec, tokenizer=build_tokenizer(), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return model.get_input_embeddings().weight.detach()

    assert torch.equal(rows(3, 0), rows(3, 1))
    assert not torch.equal(rows(3, 0), rows(4, 0))


def test_a_head_with_a_bias_keeps_its_text(codec: VideoCodec) -> None:
    model = build_model("llama")
    model.lm_head = nn.Linear(32, TEXT_SIZE)
    prompt = _text()
    with torch.no_grad():
        before = model(prompt).logits.clone()
    extend(model, codec, tokenizer=build_tokenizer())
    with torch.no_grad():
        after = model(prompt).logits[..., :TEXT_SIZE]
    assert float((after - before).abs().max()) < 1e-5
    bias = model.lm_head.bias.detach()
    assert torch.allclose(bias[TEXT_SIZE:], bias[:TEXT_SIZE].mean())


def test_text_tokenizer_is_copied_and_dtype_kept(codec: VideoCodec, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model("qwen3").to(torch.bfloat16)
    extended = extend(model, codec, tokenizer=tokenizer)
    assert len(tokenizer) == TEXT_SIZE
    assert len(extended.tokenizer) == TEXT_SIZE + len(SPECIAL_TOKENS)
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_folder_is_a_plain_hugging_face_model(family: str, tied: bool, codec: VideoCodec, tmp_path: Path) -> None:
    lm = VideoLM.extend(build_model(family, tied=tied), codec=codec, tokenizer=build_tokenizer())
    lm.save_pretrained(tmp_path / "lm")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "lm")
    ids = torch.cat([_text(), torch.full((3, 1), lm.vocabulary.total_size - 1)], dim=1)
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, lm.model(ids).logits)
    known = tokenizer.get_vocab()
    if family == "qwen2":  # AutoTokenizer insists on Qwen2Tokenizer, which adds its own token when it is not there
        assert known.pop("<|endoftext|>") == len(lm.tokenizer)
    assert known == lm.tokenizer.get_vocab()
    assert tokenizer.encode("a cat, ä") == lm.tokenizer.encode("a cat, ä")
    again = VideoLM.from_pretrained(tmp_path / "lm")
    assert again.vocabulary == lm.vocabulary
    assert again.tokenizer.get_vocab() == lm.tokenizer.get_vocab()
    assert again.codec.codec_id == codec.codec_id
    assert again.processor.encode_text("<|video|> </s> ä") == lm.processor.encode_text("<|video|> </s> ä")
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, lm.model(ids).logits)


def test_extends_a_folder_by_name(codec: VideoCodec, tmp_path: Path) -> None:
    build_model("llama").save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    lm = VideoLM.extend(str(tmp_path), codec="preset:tiny")
    assert lm.vocabulary.text_size == TEXT_SIZE


def test_code_of_a_model_is_never_run(codec: VideoCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by somebody who would say yes: transformers asks on a terminal unless it is told."""
    monkeypatch.setattr("builtins.input", lambda question: "y")
    ran = tmp_path / "ran"
    classes = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine", "AutoTokenizer": ["mine.T", None]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": classes}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": classes}))
    (tmp_path / "mine.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    for load in (load_causal_lm, load_tokenizer):
        with pytest.raises(ModelError, match=r"^cannot load a "):
            load(tmp_path)
    assert not ran.exists()


def test_a_large_vocabulary_takes_seconds(codec: VideoCodec) -> None:
    class Large:
        codebook_size, num_codebooks = 65_536, 1

        def codebook_vectors(self, codebook: int = 0) -> torch.Tensor:
            bits = torch.arange(65_536)[:, None] >> torch.arange(16)[None]
            return (bits & 1).float() * 2 - 1

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20_000, hidden_size=256, intermediate_size=16, num_hidden_layers=1, num_attention_heads=4
        )
    )
    start = time.perf_counter()
    extend(model, Large(), tokenizer=build_tokenizer())  # type: ignore[arg-type]
    assert time.perf_counter() - start < 20  # Hugging Face's default takes minutes


def test_models_that_cannot_be_extended_say_so(codec: VideoCodec, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError, match="needs its text tokenizer"):
        extend(build_model("llama"), codec)
    extended = extend(build_model("llama"), codec, tokenizer=tokenizer)
    with pytest.raises(ModelError, match=r"already has <\|video\|>"):
        extend(extended.model, codec, tokenizer=extended.tokenizer)
    with pytest.raises(ModelError, match="cannot load a causal language model from '/nowhere'"):
        extend("/nowhere", codec)

    class Odd(LlamaForCausalLM):
        def get_output_embeddings(self) -> None:
            return None

    odd: PreTrainedModel = Odd(build_model("llama").config)
    with pytest.raises(ModelError, match="Odd has no linear output head"):
        extend(odd, codec, tokenizer=tokenizer)
    second = build_model("llama")
    second.model.layers[0].values = nn.Embedding(TEXT_SIZE, 8)  # type: ignore[union-attr,index]
    with pytest.raises(ModelError, match=r"second table over the vocabulary \(model.layers.0.values\)"):
        extend(second, codec, tokenizer=tokenizer)
    assert second.get_input_embeddings().weight.shape[0] == TEXT_SIZE


def test_a_model_with_learned_positions_too(codec: VideoCodec) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=TEXT_SIZE, n_embd=32, n_layer=1, n_head=2, n_positions=64)).eval()
    with torch.no_grad():
        before = model(_text()).logits.clone()
    extend(model, codec, tokenizer=build_tokenizer())
    with torch.no_grad():
        assert float((model(_text()).logits[..., :TEXT_SIZE] - before).abs().max()) < 1e-5
