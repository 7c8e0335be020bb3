"""A collapse is announced in words, once, with what to try; a codebook in use is not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.tokenizers.lively import SMALLEST
from tokvid_tokenizers import VideoCodec
from tokvid_tokenizers.codebook_watch import CodebookWatch
from tokvid_tokenizers.quantizers import GroupedConfig, LFQConfig, QuantizerConfig, SimVQConfig, VQConfig

CASES: dict[str, tuple[QuantizerConfig, str]] = {
    "vq": (VQConfig(codebook_size=64, dim=3), "restart_below"),
    "grouped": (GroupedConfig(quantizer=VQConfig(codebook_size=64, dim=2)), "restart_below"),
    "lfq": (LFQConfig(codebook_size=64), "entropy"),
    "simvq": (SimVQConfig(codebook_size=64, dim=3), "commitment"),
}


def watch_of(config: QuantizerConfig) -> tuple[CodebookWatch, VideoCodec]:
    codec = VideoCodec(dataclasses.replace(SMALLEST, quantizer=config))
    return CodebookWatch(config, codec), codec


@pytest.mark.parametrize("kind", CASES)
def test_a_collapse_is_announced_once_until_it_is_over(kind: str) -> None:
    config, advice = CASES[kind]
    watch, codec = watch_of(config)
    even = torch.arange(64).repeat(40).view(1, 1, 1, 40, 64).expand(1, codec.num_codebooks, 1, 40, 64)
    one = torch.zeros_like(even)
    told = []
    for codes in (even, one, one, even, one):
        watch.update(codes)
        figures, warning = watch.line()
        told.append(warning)
        assert figures["usage"] == (1.0 if codes is even else 1 / 64)
        assert figures["dead"] == (0 if codes is even else 63 * codec.num_codebooks)
    assert [text is not None for text in told] == [False, True, False, False, True]
    assert told[1] is not None and "1 of 64 codes in use (perplexity 1.0)" in told[1] and advice in told[1]


def test_one_collapsed_codebook_of_two_is_enough() -> None:
    watch, _ = watch_of(CASES["grouped"][0])
    codes = torch.arange(64).repeat(40).view(1, 1, 1, 40, 64).expand(1, 2, 1, 40, 64).clone()
    codes[:, 1] = 5
    watch.update(codes)
    assert watch.line()[1] is not None


def test_too_few_codes_say_nothing() -> None:
    watch, _ = watch_of(CASES["vq"][0])
    watch.update(torch.randint(64, (1, 1, 1, 4, 4), generator=torch.Generator().manual_seed(0)))
    assert watch.line()[1] is None
