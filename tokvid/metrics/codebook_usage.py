"""How much of its codebooks a codec uses: counts of every code, gathered batch by batch.

It needs numpy only; torch tensors are taken as they come. The unigram entropy is what a language model must beat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tokvid.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CodebookStats:
    """The usage of one codebook, or of all together (then perplexity and entropy are means over the codebooks).

    ``usage`` is the share of the entries that occurred, in [0, 1]; ``dead`` the number that never did; ``perplexity``
    the size of an evenly used codebook of the same entropy; ``num_codes`` how many codes were counted.
    """

    usage: float
    dead: int
    perplexity: float
    entropy_bits: float
    entropy_nats: float
    num_codes: int


class CodebookUsage:
    """Counts the codes of ``num_codebooks`` codebooks of ``codebook_size`` entries each."""

    def __init__(self, codebook_size: int, num_codebooks: int = 1) -> None:
        if codebook_size < 1 or num_codebooks < 1:
            raise ShapeError(
                f"codebook_size and num_codebooks must be at least 1, got {codebook_size} and {num_codebooks}"
            )
        self.codebook_size, self.num_codebooks = codebook_size, num_codebooks
        self.counts: npt.NDArray[np.int64] = np.zeros((num_codebooks, codebook_size), np.int64)

    def update(self, codes: npt.NDArray[np.integer[Any]] | Tensor) -> None:
        """Count integer ``codes`` ``[B,K,t,h,w]`` in [0, codebook_size); raises :class:`ShapeError`."""
        array = codes if isinstance(codes, np.ndarray) else codes.detach().cpu().numpy()
        if array.ndim != 5 or array.shape[1] != self.num_codebooks or array.dtype.kind not in "iu":
            raise ShapeError(
                f"codes must be integers [B,{self.num_codebooks},t,h,w], got {array.dtype} {list(array.shape)}"
            )
        if array.size == 0:
            return
        if array.min() < 0 or array.max() >= self.codebook_size:
            raise ShapeError(
                f"codes must lie in [0, {self.codebook_size}), got values from {array.min()} to {array.max()}"
            )
        for book in range(self.num_codebooks):
            self.counts[book] += np.bincount(array[:, book].ravel(), minlength=self.codebook_size)

    def per_codebook(self) -> list[CodebookStats]:
        """One :class:`CodebookStats` a codebook; :class:`ShapeError` before any code was counted."""
        if not self.counts.any():
            raise ShapeError("no codes were counted yet; call update first")
        return [_stats(counts) for counts in self.counts]

    def stats(self) -> CodebookStats:
        """All codebooks together."""
        books = self.per_codebook()
        entropy = math.fsum(book.entropy_nats for book in books) / len(books)
        return CodebookStats(
            usage=math.fsum(book.usage for book in books) / len(books),
            dead=sum(book.dead for book in books),
            perplexity=math.fsum(book.perplexity for book in books) / len(books),
            entropy_bits=entropy / math.log(2),
            entropy_nats=entropy,
            num_codes=sum(book.num_codes for book in books),
        )


def _stats(counts: npt.NDArray[np.int64]) -> CodebookStats:
    used = counts[counts > 0]
    shares = used / used.sum()
    entropy = max(0.0, -float((shares * np.log(shares)).sum()))
    return CodebookStats(
        usage=used.size / counts.size,
        dead=counts.size - used.size,
        perplexity=math.exp(entropy),
        entropy_bits=entropy / math.log(2),
        entropy_nats=entropy,
        num_codes=int(used.sum()),
    )
