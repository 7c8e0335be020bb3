"""``<|video|> t <|x|> h <|x|> w <|codes|> codes... <|/video|>``: a header with the grid, then nothing but codes.

t, h and w are decimal digits, one token each, without leading zeros. The template knows ids, not what a code
means nor in which order the cells stand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokvid.errors import ModelError, ShapeError
from tokvid.grid import Grid
from tokvid_lm.vocabulary import DIGITS, END_OF_HEADER, SEPARATOR, VideoVocabulary

CODE = -1
"""Stands in a body where a code will be."""


class BareTemplate:
    """Builds and parses the sequence of one video: a header, a body, an end. Other templates change the body."""

    kind = "bare"

    def __init__(self, vocabulary: VideoVocabulary) -> None:
        self.vocabulary = vocabulary
        self._digit_ids = [vocabulary.special[digit] for digit in DIGITS]
        self._value_of = {token: value for value, token in enumerate(self._digit_ids)}

    def header(self, grid: Grid) -> list[int]:
        """The ids from ``<|video|>`` to ``<|codes|>``, both included."""
        special = self.vocabulary.special
        ids = [self.vocabulary.open_id]
        for place, size in enumerate((grid.t, grid.h, grid.w)):
            if place:
                ids.append(special[SEPARATOR])
            ids.extend(self.digits(size))
        return [*ids, special[END_OF_HEADER]]

    def digits(self, number: int) -> list[int]:
        """The ids of the decimal digits of ``number``, without leading zeros."""
        return [self._digit_ids[int(digit)] for digit in str(number)]

    def body(self, grid: Grid) -> Tensor:
        """What stands between header and end, int64 ``[L]``: :data:`CODE` for a code, else the id of a separator.

        Every latent frame takes L/t places, and frames follow one another.
        """
        return torch.full((grid.cells * self.vocabulary.num_codebooks,), CODE)

    def length(self, grid: Grid) -> int:
        """How many ids a video of this grid takes, header and end included."""
        return len(self.header(grid)) + len(self.body(grid)) + 1

    def build(self, code_ids: Tensor, grid: Grid) -> Tensor:
        """Dress ``code_ids`` ``[B,S]`` as whole videos ``[B, length(grid)]``."""
        expected = grid.cells * self.vocabulary.num_codebooks
        if code_ids.ndim != 2 or code_ids.shape[1] != expected:
            raise ShapeError(f"a {grid} grid needs code ids [B,{expected}], got {list(code_ids.shape)}")
        rows = code_ids.shape[0]
        header = torch.tensor(self.header(grid), dtype=code_ids.dtype, device=code_ids.device)
        close = code_ids.new_full((rows, 1), self.vocabulary.close_id)
        body = self.body(grid).to(code_ids).repeat(rows, 1)
        body[body == CODE] = code_ids.flatten()
        return torch.cat([header.expand(rows, -1), body, close], dim=1)

    def parse(self, ids: Sequence[int]) -> tuple[Grid, Tensor]:
        """The inverse of :meth:`build` for one whole video: its grid and its code ids, int64 ``[S]``.

        Raises :class:`ModelError` when the header, the end or the number of codes is not what :meth:`build`
        would have written. Whether each id is a code is the vocabulary's to check.
        """
        ids = list(ids)
        end_of_header = self.vocabulary.special[END_OF_HEADER]
        if len(ids) < 2 or ids[0] != self.vocabulary.open_id or ids[-1] != self.vocabulary.close_id:
            raise ModelError("a video starts with <|video|> and ends with <|/video|>; these ids do not")
        if end_of_header not in ids:
            raise ModelError("the header of a video ends with <|codes|>; these ids have none")
        end = ids.index(end_of_header)
        grid = self._parse_sizes(ids[1:end])
        found, body = torch.tensor(ids[end + 1 : -1], dtype=torch.int64), self.body(grid)
        if len(found) != len(body):
            raise ModelError(f"a video with a {grid} header holds {len(body)} codes and separators, got {len(found)}")
        wrong = (found != body) & (body != CODE)
        if bool(wrong.any()):
            place = int(wrong.nonzero()[0])
            raise ModelError(f"place {place} of a {grid} video is for id {int(body[place])}, got {int(found[place])}")
        return grid, found[body == CODE]

    def _parse_sizes(self, ids: list[int]) -> Grid:
        sizes: list[str] = [""]
        for token in ids:
            if token == self.vocabulary.special[SEPARATOR]:
                sizes.append("")
            elif token in self._value_of:
                sizes[-1] += str(self._value_of[token])
            else:
                raise ModelError(f"id {token} in the header of a video is neither a digit nor <|x|>")
        if len(sizes) != 3 or any(not size or size.startswith("0") for size in sizes):
            raise ModelError(f"the header of a video holds t x h x w without leading zeros, got {'x'.join(sizes)!r}")
        t, h, w = (int(size) for size in sizes)
        return Grid(t=t, h=h, w=w)
