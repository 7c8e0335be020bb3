"""Which id means what: text | special | codes, by arithmetic on ids, never through strings.

A cell of a video is written as ``slots`` ids, one after the other. Without factors a slot is a codebook, and codes of
codebook k stand at ``code_offset + k*codebook_size``. With ``factors`` (512 and 512 for a codebook of 2^18) each code
is written as its digits in that mixed radix, the first the most significant, and every digit is a slot with a range
of ids of its own: that is how MAGVIT-v2 (Yu et al. 2023, arXiv 2310.05737) predicts a codebook too large for one
softmax.

The rows between the last special token and ``code_offset`` (a padded embedding has some) mean nothing and are never
produced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tokvid.config import from_mapping, to_mapping
from tokvid.errors import ModelError, ShapeError

Mode = Literal["next_token", "maskgit", "frame"]
MODES: tuple[Mode, ...] = get_args(Mode)
"""How the codes of a video are drawn; a video says in its header under which of them, and so which mask, it stands."""

OPEN, CLOSE, MASK = "<|video|>", "<|/video|>", "<|mask|>"
SEPARATOR, POINT, FPS, DURATION, ACTIONS, END_OF_HEADER = (
    "<|x|>",
    "<|.|>",
    "<|fps|>",
    "<|duration|>",
    "<|actions|>",
    "<|codes|>",
)
END_OF_ROW, END_OF_FRAME = "<|row|>", "<|frame|>"
OPEN_KNOWN, CLOSE_KNOWN = "<|known|>", "<|/known|>"
DIGITS = tuple(f"<|{digit}|>" for digit in range(10))
MODE_TOKENS: dict[Mode, str] = {mode: f"<|mode:{mode}|>" for mode in MODES}
USER, ASSISTANT, END_OF_TURN = "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TOKENS = (USER, ASSISTANT, END_OF_TURN)
"""Of a model that talks: who speaks, and where a turn ends."""
SPECIAL_TOKENS = (
    *(OPEN, CLOSE, MASK, *DIGITS, SEPARATOR, POINT, FPS, DURATION, ACTIONS, END_OF_HEADER),
    *(END_OF_ROW, END_OF_FRAME, OPEN_KNOWN, CLOSE_KNOWN, *MODE_TOKENS.values()),
)


def special_tokens(num_actions: int = 0, *, chat: bool = False) -> tuple[str, ...]:
    """The names of all special tokens of a vocabulary with that many actions, with ``chat`` those of turns too."""
    actions = (action_token(action) for action in range(num_actions))
    return (*SPECIAL_TOKENS, *actions, *(CHAT_TOKENS if chat else ()))


def action_token(action: int) -> str:
    """The name of the special token of an action."""
    return f"<|action:{action}|>"


@dataclass(frozen=True, kw_only=True)
class VideoVocabulary:
    """The plan of the ids.

    ``text_size``: ids of the text tokenizer before it was extended, [0, text_size). ``special``: name to id of every
    name that :func:`special_tokens` gives. ``code_offset``: the id of code 0 of slot 0. ``factors``: how many digits
    a code has and how many values each; their product is ``codebook_size``; none: a code is one id.
    """

    text_size: int
    special: Mapping[str, int]
    code_offset: int
    codebook_size: int
    num_codebooks: int
    factors: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.text_size, self.codebook_size, self.num_codebooks) < 1:
            raise ModelError(
                "a vocabulary needs text_size, codebook_size and num_codebooks of at least 1, got"
                f" {self.text_size}, {self.codebook_size}, {self.num_codebooks}"
            )
        if self.factors and (min(self.factors) < 2 or math.prod(self.factors) != self.codebook_size):
            raise ModelError(
                f"factors must be at least 2 each and multiply to the codebook's {self.codebook_size}, got"
                f" {list(self.factors)} = {math.prod(self.factors)}"
            )
        names = set(special_tokens(self.num_actions, chat=self.chats))
        if set(self.special) != names:
            odd = sorted(set(self.special) ^ names)
            raise ModelError(
                f"the special tokens must be exactly {list(SPECIAL_TOKENS)}, actions, and all of {list(CHAT_TOKENS)} or"
                f" none; wrong: {odd}"
            )
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
    def num_actions(self) -> int:
        """How many different actions there are; 0: videos come without."""
        return len(self.special) - len(special_tokens(chat=self.chats))

    @property
    def chats(self) -> bool:
        """Whether there are ids for turns of a conversation."""
        return END_OF_TURN in self.special

    def action_ids(self, actions: Tensor) -> Tensor:
        """Actions int64 of any shape in [0, num_actions) to ids; raises :class:`ModelError` for others."""
        if actions.numel():
            low, high = (int(value) for value in actions.aminmax())
            if low < 0 or high >= self.num_actions:
                raise ModelError(
                    f"actions must lie in [0, {self.num_actions}), got values from {low} to {high}; how many there are"
                    " is said when a model is extended"
                )
        return torch.tensor(self.all_action_ids or [0])[actions.cpu()]

    @property
    def all_action_ids(self) -> list[int]:
        """The ids of all actions, in order."""
        return [self.special[action_token(action)] for action in range(self.num_actions)]

    @property
    def slots(self) -> int:
        """P, the ids that a cell is written as."""
        return self.num_codebooks * max(1, len(self.factors))

    @cached_property
    def slot_sizes(self) -> tuple[int, ...]:
        """The values of each slot."""
        return (self.factors or (self.codebook_size,)) * self.num_codebooks

    @property
    def total_size(self) -> int:
        """Rows of the extended embedding: one more than the largest id of a code."""
        return self.code_offset + sum(self.slot_sizes)

    def slot_range(self, slot: int) -> range:
        """The ids of one slot."""
        if not 0 <= slot < self.slots:
            raise ModelError(f"slot {slot} does not exist: a cell has {self.slots}")
        start = self.code_offset + sum(self.slot_sizes[:slot])
        return range(start, start + self.slot_sizes[slot])

    def codes_to_ids(self, codes: Tensor) -> Tensor:
        """Codes int64 ``[B,K,t,h,w]`` to ids ``[B,P,t,h,w]``; raises :class:`ShapeError` for other codes."""
        _check_integers(codes)
        if codes.ndim != 5 or codes.shape[1] != self.num_codebooks:
            raise ShapeError(f"expected codes [B,{self.num_codebooks},t,h,w], got {list(codes.shape)}")
        if codes.numel():
            low, high = (int(v) for v in codes.aminmax())
            if low < 0 or high >= self.codebook_size:
                raise ShapeError(f"codes must lie in [0, {self.codebook_size}), got values from {low} to {high}")
        if not self.factors:
            return codes + self._offsets(codes)
        digits, rest = [], codes
        for size in reversed(self.factors):
            digits.append(rest % size)
            rest = rest // size
        return torch.stack(digits[::-1], dim=2).flatten(1, 2) + self._offsets(codes)

    def ids_to_codes(self, ids: Tensor) -> Tensor:
        """The inverse of :meth:`codes_to_ids`. Raises :class:`ModelError` naming the first id that is no code there."""
        _check_integers(ids)
        if ids.ndim != 5 or ids.shape[1] != self.slots:
            raise ShapeError(f"expected ids [B,{self.slots},t,h,w], got {list(ids.shape)}")
        digits = ids - self._offsets(ids)
        sizes = torch.tensor(self.slot_sizes, device=ids.device)[:, None, None, None]
        wrong = (digits < 0) | (digits >= sizes)
        if bool(wrong.any()):
            row, slot, t, h, w = wrong.nonzero()[0].tolist()
            expected = self.slot_range(slot)
            raise ModelError(
                f"id {int(ids[row, slot, t, h, w])} in cell ({t}, {h}, {w}) is no code of slot {slot}: expected"
                f" [{expected.start}, {expected.stop})"
            )
        if not self.factors:
            return digits
        parts: Tensor = digits.unflatten(1, (self.num_codebooks, len(self.factors)))
        codes = parts[:, :, 0]
        for number, size in enumerate(self.factors[1:], start=1):
            codes = codes * size + parts[:, :, number]
        return codes

    def _offsets(self, like: Tensor) -> Tensor:
        """The id of value 0 of each slot, ``[P,1,1,1]``."""
        starts = [self.slot_range(slot).start for slot in range(self.slots)]
        return torch.tensor(starts, device=like.device)[:, None, None, None]

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
