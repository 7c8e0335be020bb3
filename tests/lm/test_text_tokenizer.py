"""The text tokenizer of a model from scratch: any text comes back, and transformers loads it without tokvid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tokvid.data.sprites import SpriteWorld, SpriteWorldConfig
from tokvid.errors import ConfigError, DataError
from tokvid_lm.text_tokenizer import FIXED, train_text_tokenizer


def captions(count: int) -> list[str]:
    world = SpriteWorld(SpriteWorldConfig())
    return [world.caption(index, split="train") for index in range(count)]


TOKENIZER = train_text_tokenizer(captions(500), 512)
AWKWARD = [
    "",
    " ",
    "  two  blanks  ",
    "\ta tab\r\nand lines\n\n",
    "▁ is not a blank ▁▁",
    "🦄 ein Einhorn 👩‍👩‍👧 läuft — 左へ",
    "<0x41><0x0A> <s></s><unk><pad>",
    "\x01\x1f\x7f control \u200b \ufeff marks",
    "\ufffd broken already, e\u0301 is not \u00e9",
]


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(encode(TOKENIZER, text)) == text


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_any_text_comes_back_and_is_no_special_token(text: str) -> None:
    ids = encode(TOKENIZER, text)
    assert TOKENIZER.decode(ids) == text
    assert min(ids, default=4) >= 4, "a special id came out of plain text"


def test_captions_are_short() -> None:
    lengths = [len(encode(TOKENIZER, text)) for text in captions(200)]
    words = [len(text.split()) for text in captions(200)]
    assert sum(lengths) < 2.2 * sum(words)


def test_the_vocabulary_is_as_large_as_asked_or_as_the_texts_fill() -> None:
    assert len(TOKENIZER) == TOKENIZER.vocab_size == 512
    assert FIXED < len(train_text_tokenizer(["ab ab"], 512)) < 280
    with pytest.raises(ConfigError, match="at least 276"):
        train_text_tokenizer(["a"], 100)
    with pytest.raises(DataError, match="all of them are empty"):
        train_text_tokenizer(["", " "], 512)


def test_an_alphabet_larger_than_the_vocabulary_falls_back_to_bytes() -> None:
    text = "".join(chr(0x4E00 + n) for n in range(2000))
    tokenizer = train_text_tokenizer([text, "一一一一丁丁 七"], 300)
    assert len(tokenizer) <= 300
    assert tokenizer.decode(encode(tokenizer, text)) == text
    assert len(encode(tokenizer, "一")) == 1


def test_the_same_texts_give_the_same_tokenizer() -> None:
    again = train_text_tokenizer(captions(500), 512)
    assert again.backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()


def test_transformers_loads_it_without_tokvid(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id, loaded.unk_token_id) == (1, 2, 3, 0)
    for text in AWKWARD:
        assert encode(loaded, text) == encode(TOKENIZER, text)
        assert loaded.decode(encode(loaded, text)) == text
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert hasattr(transformers, settings["tokenizer_class"])
    assert "auto_map" not in settings
