"""What the tests of the language model share; built in :mod:`tests.lm.tiny`."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from tests.lm.tiny import build_model, build_tokenizer
from tokvid_lm import VideoLM
from tokvid_tokenizers import VideoCodec, load_codec


@pytest.fixture(scope="session")
def codec() -> VideoCodec:
    return load_codec("preset:tiny")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def video_lm(codec: VideoCodec) -> VideoLM:
    """A tiny Llama that speaks the codes of the tiny codec; tests must not change it."""
    return VideoLM.extend(build_model("llama"), codec=codec, tokenizer=build_tokenizer())
