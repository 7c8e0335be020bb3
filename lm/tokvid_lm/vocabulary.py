"""Which id means what: text | special | codes, by arithmetic on ids, never through strings.

Codes of codebook k stand at ``code_offset + k*codebook_size``. The rows between the last special token and
``code_offset`` (a padded embedding has some) mean nothing and are never produced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokvid.config import from_mapping, to_mapping
from tokvid.errors import ModelError, ShapeError

OPEN, CLOSE, MASK, SEPARATOR, END_OF_HEADER = "<|video|>", "<|/video|>", "<|mask|>", "<|x|>", "<|codes|>"
END_OF_FRAME = "<|frame|>"
DIGITS = tuple(f"<|{digit}|>" for digit in range(10))
SPECIAL_TOKENS = (OPEN, CLOSE, MASK, *DIGITS, SEPARATOR, END_OF_HEADER, END_OF_FRAME)


@dataclass(frozen=True, kw_only=True)
class VideoVocabulary:
    """The plan of the ids.

    ``text_size``: ids of the text tokenizer before it was extended, [0, text_size). ``special``: name to id of
    every name in :data:`SPECIAL_TOKENS`. ``code_offset``: the id of code 0 of codebook 0.
    """

    text_size: int
    special: Mapping[str, int]
    code_offset: int
    codebook_size: int
    num_codebooks: int

    def __post_init__(self) -> None:
        if min(self.text_size, self.codebook_size, self.num_codebooks) < 1:
            raise ModelError(
                "a vocabulary needs text_size, codebook_size and num_codebooks of at least 1, got"
                f" {self.text_size}, {self.codebook_size}, {self.num_codebooks}"
            )
        if set(self.special) != set(SPECIAL_TOKENS):
            odd = sorted(set(self.special) ^ set(SPECIAL_TOKENS))
            raise ModelError(f"the special tokens must be exactly {list(SPECIAL_TOKENS)}; wrong: {odd}")
        ids = sorted(self.special.values())
        if len(set(ids)) != len(ids) or ids[0] < self.text_size or ids[-1] >= self.code_offset:
            raise ModelError(
                f"special ids must be distinct and lie in [{self.text_size}, {self.code_offset}), got {ids}"
            )

    @property
    def open_id(self) -> int:
        """The id of ``<|video|>``."""
        return self.special[OPEN]

    @property
    def close_id(self) -> int:
        """The id of ``<|/video|>``."""
        return self.special[CLOSE]

    @property
    def mask_id(self) -> int:
        """The id of ``<|mask|>``, a cell whose code is not known."""
        return self.special[MASK]

    @property
    def total_size(self) -> int:
        """Rows of the extended embedding: one more than the largest id of a code."""
        return self.code_offset + self.num_codebooks * self.codebook_size

    def code_range(self, codebook: int) -> range:
        """The ids of the codes of one codebook."""
        if not 0 <= codebook < self.num_codebooks:
            raise ModelError(f"codebook {codebook} does not exist: there are {self.num_codebooks}")
        start = self.code_offset + codebook * self.codebook_size
        return range(start, start + self.codebook_size)

    def codes_to_ids(self, codes: Tensor, codebooks: Tensor) -> Tensor:
        """Codes, int64 of any shape, to ids of the same shape; ``codebooks`` broadcasts against ``codes``.

        Raises :class:`ShapeError` for a code outside [0, codebook_size).
        """
        _check_integers(codes)
        if codes.numel():
            low, high = (int(v) for v in codes.aminmax())
            if low < 0 or high >= self.codebook_size:
                raise ShapeError(f"codes must lie in [0, {self.codebook_size}), got values from {low} to {high}")
        return codes + codebooks.to(codes.device) * self.codebook_size + self.code_offset

    def ids_to_codes(self, ids: Tensor, codebooks: Tensor) -> Tensor:
        """The inverse of :meth:`codes_to_ids`. Raises :class:`ModelError` naming the first id that is no code."""
        _check_integers(ids)
        codes = ids - codebooks.to(ids.device) * self.codebook_size - self.code_offset
        wrong = (codes < 0) | (codes >= self.codebook_size)
        if bool(wrong.any()):
            place = int(wrong.flatten().nonzero()[0])
            first = self.code_range(int(codebooks.expand_as(ids).flatten()[place]))
            raise ModelError(
                f"id {int(ids.flatten()[place])} at position {place} is no code there: expected"
                f" [{first.start}, {first.stop})"
            )
        return codes

    def to_mapping(self) -> dict[str, Any]:
        """A plain mapping for ``video_lm.json``."""
        return to_mapping(self)

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> VideoVocabulary:
        """The inverse of :meth:`to_mapping`."""
        return from_mapping(cls, data, where="vocabulary")


def _check_integers(values: Tensor) -> None:
    if values.dtype != torch.int64:
        raise ShapeError(f"expected int64 codes or ids, got {values.dtype}")
