"""Codebook usage against values worked out by hand and a plain count."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokvid.errors import ShapeError
from tokvid.metrics.codebook_usage import CodebookUsage


def test_worked_example() -> None:
    usage = CodebookUsage(codebook_size=8)
    usage.update(np.array([0, 0, 0, 0, 1, 1, 2, 3]).reshape(1, 1, 2, 2, 2))
    stats = usage.stats()
    assert stats.entropy_bits == pytest.approx(0.5 * 1 + 0.25 * 2 + 2 * 0.125 * 3)
    assert stats.entropy_nats == pytest.approx(1.75 * math.log(2))
    assert stats.perplexity == pytest.approx(2**1.75)
    assert (stats.usage, stats.dead, stats.num_codes) == (0.5, 4, 8)


def test_even_use_is_full_and_one_code_is_nothing() -> None:
    even = CodebookUsage(codebook_size=64, num_codebooks=2)
    even.update(np.arange(64).repeat(2).reshape(1, 64, 2).transpose(0, 2, 1).reshape(1, 2, 4, 4, 4))
    stats = even.stats()
    assert stats.usage == 1.0 and stats.dead == 0
    assert stats.perplexity == pytest.approx(64) and stats.entropy_bits == pytest.approx(6)
    single = CodebookUsage(codebook_size=64)
    single.update(np.full((3, 1, 2, 2, 2), 7))
    stats = single.stats()
    assert stats.perplexity == 1.0 and stats.entropy_bits == 0.0 and stats.dead == 63


@given(
    batches=st.lists(st.integers(0, 2**32), min_size=1, max_size=4),
    size=st.integers(1, 40),
    books=st.integers(1, 3),
)
@settings(max_examples=30, deadline=None)
def test_batches_add_up_to_a_plain_count(batches: list[int], size: int, books: int) -> None:
    usage = CodebookUsage(size, books)
    counters = [Counter[int]() for _ in range(books)]
    for seed in batches:
        codes = np.random.default_rng(seed).integers(0, size, (2, books, 2, 3, 2))
        usage.update(torch.from_numpy(codes) if seed % 2 else codes)
        for book, counter in enumerate(counters):
            counter.update(codes[:, book].ravel().tolist())
    for stats, counter in zip(usage.per_codebook(), counters, strict=True):
        total = counter.total()
        entropy = -sum(n / total * math.log2(n / total) for n in counter.values())
        assert stats.num_codes == total and stats.dead == size - len(counter)
        assert stats.usage == pytest.approx(len(counter) / size)
        assert stats.entropy_bits == pytest.approx(entropy, abs=1e-9)
    assert usage.stats().dead == sum(s.dead for s in usage.per_codebook())
    assert usage.stats().entropy_bits == pytest.approx(np.mean([s.entropy_bits for s in usage.per_codebook()]))


def test_codebooks_are_counted_apart() -> None:
    usage = CodebookUsage(codebook_size=4, num_codebooks=2)
    codes = torch.zeros(1, 2, 1, 2, 2, dtype=torch.int64)
    codes[0, 1] = torch.arange(4).reshape(1, 2, 2)
    usage.update(codes)
    first, second = usage.per_codebook()
    assert (first.usage, second.usage) == (0.25, 1.0)


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros((1, 2, 1, 1, 1), np.int64),
        np.zeros((1, 1, 1, 1), np.int64),
        np.zeros((1, 1, 1, 1, 1), np.float32),
        np.full((1, 1, 1, 1, 1), 8),
        np.full((1, 1, 1, 1, 1), -1),
    ],
)
def test_codes_that_cannot_be_are_refused_and_not_counted(codes: np.ndarray) -> None:  # type: ignore[type-arg]
    usage = CodebookUsage(codebook_size=8)
    with pytest.raises(ShapeError):
        usage.update(codes)
    assert not usage.counts.any()
    with pytest.raises(ShapeError, match="no codes were counted"):
        usage.stats()
