"""What every template shares: the header of a video, its fields, and building and parsing around a body.

A template knows ids, not what a code means nor in which order the cells stand. Numbers are decimal digits, one token
each, without leading zeros.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from tokvid.errors import ModelError, ShapeError
from tokvid.grid import Grid
from tokvid_lm.vocabulary import (
    ACTIONS,
    DIGITS,
    END_OF_HEADER,
    FPS,
    MODE_TOKENS,
    MODES,
    POINT,
    SEPARATOR,
    Mode,
    VideoVocabulary,
)

CODE, ACTION = -1, -2
"""Stand in a body where a code or an action will be."""


@dataclass(frozen=True, kw_only=True)
class VideoHeader:
    """What a video says of itself before its codes.

    ``mode`` is how its codes are drawn. ``fps`` (None: not said) is kept to two decimals. ``actions`` ids of actions
    stand before each latent frame but the first.
    """

    grid: Grid
    mode: Mode = "next_token"
    fps: float | None = None
    actions: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ModelError(f"a video's mode is one of {', '.join(MODES)}, got {self.mode!r}")
        if self.fps is not None and not 0.01 <= self.fps < 1e6:
            raise ModelError(f"fps must lie between 0.01 and a million, got {self.fps}")
        if self.actions < 0:
            raise ModelError(f"a latent frame cannot have {self.actions} actions")


@dataclass(frozen=True, kw_only=True, eq=False)
class Body:
    """What stands between header and end: ``ids`` int64 ``[L]``, :data:`CODE`, :data:`ACTION` or a separator's id.

    ``frame`` int64 ``[L]`` is the latent frame of each place; frames follow one another.
    """

    ids: Tensor
    frame: Tensor

    @property
    def is_code(self) -> Tensor:
        """Where codes stand, bool ``[L]``."""
        return self.ids == CODE


@dataclass(frozen=True, kw_only=True, eq=False)
class ParsedVideo:
    """A video taken apart: its header, the ids of its codes ``[S]`` and of its actions ``[(t-1)*actions]``."""

    header: VideoHeader
    code_ids: Tensor
    action_ids: Tensor


class Template(ABC):
    """Builds and parses the sequence of one video: a header, a body, an end."""

    kind: ClassVar[str]

    def __init__(self, vocabulary: VideoVocabulary) -> None:
        self.vocabulary = vocabulary
        self._digit_ids = [vocabulary.special[digit] for digit in DIGITS]
        self._value_of = {token: value for value, token in enumerate(self._digit_ids)}
        self._mode_of = {vocabulary.special[name]: mode for mode, name in MODE_TOKENS.items()}

    @abstractmethod
    def header_fields(self, header: VideoHeader) -> list[int]:
        """The ids between the mode and the end of the header."""

    @abstractmethod
    def read_fields(self, sizes: list[int], fields: dict[str, float]) -> tuple[Grid, float | None]:
        """Grid and fps of what :meth:`header_fields` wrote; KeyError or ValueError for anything else.

        ``sizes`` are the numbers before the first named field, ``fields`` those after a field's name.
        """

    @abstractmethod
    def frame(self, grid: Grid) -> list[int]:
        """One latent frame of the body: :data:`CODE` for a code, else the id of a separator."""

    def header(self, header: VideoHeader) -> list[int]:
        """The ids from ``<|video|>`` to ``<|codes|>``, both included."""
        special = self.vocabulary.special
        actions = [special[ACTIONS], *self.number(header.actions)] if header.actions else []
        fields = self.header_fields(header)
        return [
            self.vocabulary.open_id,
            special[MODE_TOKENS[header.mode]],
            *fields,
            *actions,
            special[END_OF_HEADER],
        ]

    def number(self, number: float) -> list[int]:
        """The ids of a number: its decimal digits, and two decimals at most."""
        text = f"{number:.2f}".rstrip("0").rstrip(".")
        point = self.vocabulary.special[POINT]
        return [point if letter == "." else self._digit_ids[int(letter)] for letter in text]

    def sizes(self, *sizes: int) -> list[int]:
        """Numbers with ``<|x|>`` between them."""
        ids: list[int] = []
        for size in sizes:
            ids += [*([self.vocabulary.special[SEPARATOR]] if ids else []), *self.number(size)]
        return ids

    def fps(self, header: VideoHeader) -> list[int]:
        """``<|fps|>`` and the rate, or nothing."""
        return [] if header.fps is None else [self.vocabulary.special[FPS], *self.number(header.fps)]

    @lru_cache(maxsize=64)  # noqa: B019 - of a handful of templates
    def body(self, header: VideoHeader) -> Body:
        """What stands between header and end; shared, not to write into."""
        frame = self.frame(header.grid)
        ids, frames = list(frame), [0] * len(frame)
        for number in range(1, header.grid.t):
            later = [ACTION] * header.actions + frame
            ids += later
            frames += [number] * len(later)
        return Body(ids=torch.tensor(ids), frame=torch.tensor(frames))

    def length(self, header: VideoHeader) -> int:
        """How many ids such a video takes, header and end included."""
        frame = len(self.frame(header.grid))
        return len(self.header(header)) + header.grid.t * frame + (header.grid.t - 1) * header.actions + 1

    def build(self, code_ids: Tensor, header: VideoHeader, action_ids: Tensor | None = None) -> Tensor:
        """Dress ``code_ids`` ``[B,S]`` (and ``action_ids`` ``[B,(t-1)*actions]``) as videos ``[B, length(header)]``."""
        grid, rows = header.grid, len(code_ids)
        expected = grid.cells * self.vocabulary.slots
        if code_ids.ndim != 2 or code_ids.shape[1] != expected:
            raise ShapeError(f"a {grid} grid needs code ids [B,{expected}], got {list(code_ids.shape)}")
        actions = code_ids.new_empty(rows, 0) if action_ids is None else action_ids.to(code_ids)
        if actions.shape != (rows, (grid.t - 1) * header.actions):
            raise ShapeError(
                f"{grid.t} latent frames with {header.actions} actions each but the first need action ids"
                f" [{rows},{(grid.t - 1) * header.actions}], got {list(actions.shape)}"
            )
        start = torch.tensor(self.header(header), dtype=code_ids.dtype, device=code_ids.device)
        close = code_ids.new_full((rows, 1), self.vocabulary.close_id)
        body = self.body(header).ids.to(code_ids).repeat(rows, 1)
        is_code, is_action = body == CODE, body == ACTION
        body[is_code] = code_ids.flatten()
        body[is_action] = actions.flatten()
        return torch.cat([start.expand(rows, -1), body, close], dim=1)

    def parse(self, ids: Sequence[int]) -> ParsedVideo:
        """The inverse of :meth:`build` for one whole video.

        Raises :class:`ModelError` when the header, the end or the number of codes is not what :meth:`build` would
        have written. Whether each id is a code of its slot is the vocabulary's to check.
        """
        ids = list(ids)
        end_of_header = self.vocabulary.special[END_OF_HEADER]
        if len(ids) < 2 or ids[0] != self.vocabulary.open_id or ids[-1] != self.vocabulary.close_id:
            raise ModelError("a video starts with <|video|> and ends with <|/video|>; these ids do not")
        if end_of_header not in ids:
            raise ModelError("the header of a video ends with <|codes|>; these ids have none")
        end = ids.index(end_of_header) + 1
        header = self.parse_header(ids[:end])
        found, body = torch.tensor(ids[end:-1], dtype=torch.int64), self.body(header).ids
        if len(found) != len(body):
            raise ModelError(
                f"a video with a {header.grid} header holds {len(body)} codes and separators, got {len(found)}"
            )
        wrong = (found != body) & (body >= 0)
        if bool(wrong.any()):
            place = int(wrong.nonzero()[0])
            raise ModelError(
                f"place {place} of a {header.grid} video is for id {int(body[place])}, got {int(found[place])}"
            )
        return ParsedVideo(header=header, code_ids=found[body == CODE], action_ids=found[body == ACTION])

    def parse_header(self, ids: Sequence[int]) -> VideoHeader:
        """The inverse of :meth:`header`; :class:`ModelError` for ids that it would not have written."""
        mode = self._mode_of.get(ids[1])
        if mode is None:
            raise ModelError(f"the second id of a video says its mode; id {ids[1]} does not")
        sizes, fields = self._read(ids[2:-1])
        actions = fields.pop(ACTIONS, 0)
        try:
            grid, fps = self.read_fields(sizes, fields)
            header = VideoHeader(grid=grid, mode=mode, fps=fps, actions=int(actions))
        except (KeyError, ValueError) as error:
            raise ModelError(
                f"the header of a video does not say what a {self.kind!r} template wrote: {error}"
            ) from None
        if self.header(header) != list(ids):
            raise ModelError(f"the header of a video is not as a {self.kind!r} template writes it (leading zeros, say)")
        return header

    def _read(self, ids: Sequence[int]) -> tuple[list[int], dict[str, float]]:
        """Sizes and named fields of a header."""
        names = {self.vocabulary.special[name]: name for name in (FPS, ACTIONS, *self._names())}
        point, separator = self.vocabulary.special[POINT], self.vocabulary.special[SEPARATOR]
        texts: list[tuple[str | None, str]] = [(None, "")]
        for token in ids:
            if token in names:
                texts.append((names[token], ""))
            elif token == separator:
                texts.append((None, ""))
            elif token == point or token in self._value_of:
                name, text = texts[-1]
                texts[-1] = (name, text + ("." if token == point else str(self._value_of[token])))
            else:
                raise ModelError(f"id {token} in the header of a video is neither a digit nor the name of a field")
        try:
            sizes = [int(text) for name, text in texts if name is None]
            return sizes, {name: float(text) for name, text in texts if name is not None}
        except ValueError:
            raise ModelError(f"the header of a video holds a number that is none: {texts}") from None

    def _names(self) -> tuple[str, ...]:
        """The special tokens that name further fields of this template."""
        return ()
