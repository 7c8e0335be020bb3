"""Tiny models and a byte-level text tokenizer, all without a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tokvid_lm import VideoVocabulary
from tokvid_lm.vocabulary import special_tokens

TEXT_SIZE = 259

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2, "head_dim": 8}

FAMILIES: dict[str, tuple[type[PreTrainedModel], Callable[..., object]]] = {
    "llama": (LlamaForCausalLM, lambda **kw: LlamaConfig(**(GROUPED | kw))),
    "qwen2": (Qwen2ForCausalLM, lambda **kw: Qwen2Config(**SHAPE, num_key_value_heads=2, **kw)),
    "qwen3": (Qwen3ForCausalLM, lambda **kw: Qwen3Config(**(GROUPED | kw))),
    "mistral": (MistralForCausalLM, lambda **kw: MistralConfig(**(GROUPED | kw), sliding_window=16)),
    "gpt_neox": (GPTNeoXForCausalLM, lambda **kw: GPTNeoXConfig(**SHAPE, **kw)),
    "gemma": (GemmaForCausalLM, lambda **kw: GemmaConfig(**(GROUPED | kw))),
}


def build_model(family: str, *, tied: bool = False, rows: int = TEXT_SIZE, **changes: int) -> PreTrainedModel:
    """A tiny model of a family with seeded weights, large enough that its logits are not flat.

    ``changes`` are of its configuration.
    """
    cls, config = FAMILIES[family]
    torch.manual_seed(1)
    settings = {"vocab_size": rows, "tie_word_embeddings": tied, "initializer_range": 0.2, **changes}
    model = cls(config(**settings))  # type: ignore[call-arg]
    return model.eval()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One id per byte, then bos, eos and pad."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    assert len(tokenizer) == TEXT_SIZE
    return tokenizer


def build_vocabulary(
    *,
    codebook_size: int = 40,
    num_codebooks: int = 2,
    text_size: int = 20,
    factors: tuple[int, ...] = (),
    num_actions: int = 0,
) -> VideoVocabulary:
    """A vocabulary with a gap of three rows before the codes, as a padded embedding leaves."""
    special = {name: text_size + i for i, name in enumerate(special_tokens(num_actions))}
    return VideoVocabulary(
        text_size=text_size,
        special=special,
        code_offset=text_size + len(special) + 3,
        codebook_size=codebook_size,
        num_codebooks=num_codebooks,
        factors=factors,
    )
