"""Finite scalar quantization: codes and vectors are each other's inverse, and gradients pass straight through."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tokenizers.lively import noise
from tokvid.errors import ConfigError, ShapeError
from tokvid_tokenizers.quantizers import FSQConfig, FSQuantizer, build_quantizer

LEVELS = st.lists(st.integers(3, 9), min_size=1, max_size=4)


def fsq(*levels: int) -> FSQuantizer:
    return FSQuantizer(FSQConfig(levels=levels))


def latents_of(quantized: Tensor, levels: list[int]) -> Tensor:
    """Latents ``[N,D]`` whose bounded value is the very middle of each rounding interval, by the paper's formula."""
    count = torch.tensor(levels, dtype=torch.float64)
    half = (count - 1) * 1.001 / 2
    offset = torch.where(count % 2 == 0, 0.5, 0.0)
    middle = quantized.double() * (count // 2)
    return torch.atanh((middle + offset) / half) - torch.atanh(offset / half)


@settings(max_examples=25, deadline=None)
@given(levels=LEVELS, scale=st.sampled_from([0.1, 1.0, 10.0, 1e4]), seed=st.integers(0, 99))
def test_codes_lie_in_range_and_stand_for_what_was_quantized(levels: list[int], scale: float, seed: int) -> None:
    quantizer = fsq(*levels)
    output = quantizer(noise(2, len(levels), 2, 3, 4, seed=seed) * scale)
    assert output.codes.shape == (2, 1, 2, 3, 4) and output.codes.dtype == torch.int64
    assert output.codes.min() >= 0 and output.codes.max() < quantizer.codebook_size == math.prod(levels)
    assert output.quantized.dtype == torch.float32
    assert torch.equal(quantizer.dequantize(output.codes), output.quantized)
    assert output.loss.shape == () and output.loss == 0


@settings(max_examples=25, deadline=None)
@given(levels=LEVELS)
def test_every_code_survives_the_way_to_its_vector_and_back(levels: list[int]) -> None:
    quantizer = fsq(*levels)
    every = torch.arange(quantizer.codebook_size).view(1, 1, 1, 1, -1)
    vectors = quantizer.dequantize(every)[0, :, 0, 0].T
    assert vectors.abs().max() <= 1
    assert len(vectors.unique(dim=0)) == quantizer.codebook_size
    assert torch.equal(quantizer.codebook_vectors(), vectors)
    latents = latents_of(vectors, levels).float().T.view(1, len(levels), 1, 1, -1)
    assert torch.equal(quantizer(latents).codes, every)


@pytest.mark.parametrize("levels", [(8, 8, 8, 5, 5, 5), (1000,), (999, 3), (16, 1000)])
def test_latents_beyond_every_bound_take_the_outermost_levels(levels: tuple[int, ...]) -> None:
    quantizer = fsq(*levels)
    ends = torch.tensor([-1e9, -30.0, 30.0, 1e9]).view(1, 1, 1, 1, 4).expand(1, len(levels), 1, 1, 4)
    codes = quantizer(ends).codes.flatten()
    assert codes.tolist() == [0, 0, quantizer.codebook_size - 1, quantizer.codebook_size - 1]


def test_gradients_pass_straight_through_the_rounding() -> None:
    levels = (8, 5, 3)
    latents = noise(1, 3, 2, 4, 4).requires_grad_()
    weights = noise(1, 3, 2, 4, 4, seed=1)
    (fsq(*levels)(latents).quantized * weights).sum().backward()
    # The gradient of the bounded latents, as if nothing had been rounded.
    count = torch.tensor(levels, dtype=torch.float32).view(3, 1, 1, 1)
    half = (count - 1) * 1.001 / 2
    offset = torch.where(count % 2 == 0, 0.5, 0.0)
    shift = torch.atanh(offset / half)
    expected = weights * half / (count // 2) * (1 - torch.tanh(latents.detach() + shift).square())
    assert latents.grad is not None
    torch.testing.assert_close(latents.grad, expected)


def test_the_same_latents_give_the_same_codes_under_bf16_autocast() -> None:
    quantizer = fsq(8, 8, 8, 5, 5, 5)
    latents = noise(2, 6, 3, 8, 8) * 3
    plain = quantizer(latents)
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantizer(latents)
        half = quantizer(latents.bfloat16())
    assert torch.equal(cast.codes, plain.codes) and torch.equal(cast.quantized, plain.quantized)
    assert half.quantized.dtype == torch.float32
    assert torch.equal(half.codes, quantizer(latents.bfloat16().float()).codes)


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (torch.zeros(1, 2, 1, 1, 1, dtype=torch.int64), r"expected codes \[B,1,t,h,w\], got \[1, 2, 1, 1, 1\]"),
        (torch.zeros(1, 1, 1, 1, dtype=torch.int64), r"got \[1, 1, 1, 1\]"),
        (torch.zeros(1, 1, 0, 1, 1, dtype=torch.int64), r"got \[1, 1, 0, 1, 1\]"),
        (torch.zeros(1, 1, 1, 1, 1, dtype=torch.int32), "int64 codes, got torch.int32"),
        (torch.zeros(1, 1, 1, 1, 1), "int64 codes, got torch.float32"),
        (torch.full((1, 1, 1, 1, 1), 15), r"\[0, 15\), got values from 15 to 15"),
        (torch.tensor([-1, 3]).view(1, 1, 1, 1, 2), "got values from -1 to 3"),
    ],
)
def test_codes_that_cannot_be_are_refused(codes: Tensor, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        fsq(5, 3).dequantize(codes)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"kind": "fsqq", "levels": [8, 8]}, "did you mean 'fsq'"),
        ({"levels": [8, 8]}, "'quantizer.kind' is None"),
        ({"kind": "fsq", "level": [8, 8]}, "did you mean 'levels'"),
        ({"kind": "fsq", "levels": [8, 2]}, "3 or more"),
        ({"kind": "fsq", "levels": []}, "3 or more"),
        ({"kind": "fsq", "levels": [1001]}, "at most 1000"),
        ({"kind": "fsq", "levels": [256, 256, 257]}, "more than 2\\^24"),
        ({"kind": "fsq", "levels": "8888"}, "expected a list"),
    ],
)
def test_a_wrong_configuration_is_named(config: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_quantizer(config)


def test_a_mapping_and_a_configuration_build_the_same() -> None:
    by_mapping = build_quantizer({"kind": "fsq", "levels": [7, 5]})
    by_config = build_quantizer(FSQConfig(levels=(7, 5)))
    assert by_mapping.codebook_size == by_config.codebook_size == 35
    assert by_mapping.dim == by_config.dim == 2
