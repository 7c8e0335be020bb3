"""The pieces of a document: text and video, and how a sequence of ids falls apart into them.

Nothing here knows a model, a codec or a text tokenizer; :mod:`tokvid_lm.processor` turns segments into ids
and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tokvid.errors import ModelError, ShapeError


@dataclass(frozen=True)
class TextSegment:
    """A piece of plain text. Names of special tokens in it are just text."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ShapeError(f"a TextSegment holds a string, got {type(self.text).__name__}")


@dataclass(frozen=True, eq=False, kw_only=True)
class VideoSegment:
    """One clip, as frames, as codes, or as both (a generated clip has both, one of a continuous model frames alone).

    ``frames`` is float ``[1,3,T,H,W]`` in [-1, 1]; ``codes`` is int64 ``[1,K,t,h,w]``; ``known`` is bool
    ``[t,h,w]``, the cells that are given (None: all of them). ``num_frames`` is the exact T of a segment that has
    only codes (None: all the frames its codes hold). ``fps`` (None: not said) and ``actions``, int64 ``[T-1]``, the
    action that leads from each frame to the next, stand in the sequence. ``caption`` is what the clip was generated
    from and ``made_by`` what made it (:func:`tokvid_lm.made_by.made_by`), for the reader; neither enters a sequence.
    """

    frames: Tensor | None = None
    codes: Tensor | None = None
    known: Tensor | None = None
    num_frames: int | None = None
    fps: float | None = None
    actions: Tensor | None = None
    caption: str | None = None
    made_by: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.frames is None and self.codes is None:
            raise ShapeError("a VideoSegment needs frames or codes, got neither")
        if self.frames is not None and (self.frames.ndim != 5 or tuple(self.frames.shape[:2]) != (1, 3)):
            raise ShapeError(f"a VideoSegment holds one clip: frames [1,3,T,H,W], got {list(self.frames.shape)}")
        if self.codes is not None:
            if self.codes.ndim != 5 or self.codes.shape[0] != 1:
                raise ShapeError(f"a VideoSegment holds one clip: codes [1,K,t,h,w], got {list(self.codes.shape)}")
            if self.codes.dtype != torch.int64:
                raise ShapeError(f"codes are int64, got {self.codes.dtype}")
        if self.known is not None and (self.known.dtype != torch.bool or self.known.ndim != 3):
            raise ShapeError(f"known is bool [t,h,w], got {self.known.dtype} {list(self.known.shape)}")
        if self.actions is not None and (self.actions.dtype != torch.int64 or self.actions.ndim != 1):
            raise ShapeError(f"actions are int64 [T-1], got {self.actions.dtype} {list(self.actions.shape)}")


Segment = TextSegment | VideoSegment


Role = Literal["user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Turn:
    """What one side of a conversation says: text and videos in any order and number."""

    role: Role
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ShapeError(f"a turn is that of {' or '.join(ROLES)}, got {self.role!r}")
        wrong = [segment for segment in self.segments if not isinstance(segment, TextSegment | VideoSegment)]
        if wrong:
            raise ShapeError(f"a turn holds TextSegment and VideoSegment, got {type(wrong[0]).__name__}")


@dataclass(frozen=True)
class IdSpan:
    """A run of ids: text, or one whole video with its opening and closing ids."""

    is_video: bool
    ids: tuple[int, ...]


def split(ids: Sequence[int], *, open_id: int, close_id: int) -> list[IdSpan]:
    """Cut ``ids`` into text runs and whole videos, in order; joined again they are ``ids``.

    Raises :class:`ModelError` for a video that is opened twice, never closed, or closed but never opened.
    """
    spans: list[IdSpan] = []
    start, inside = 0, False
    for position, token in enumerate(ids):
        if token == open_id:
            if inside:
                raise ModelError(f"a video opens at position {position} inside the one that opened at {start}")
            if position > start:
                spans.append(IdSpan(False, tuple(ids[start:position])))
            start, inside = position, True
        elif token == close_id:
            if not inside:
                raise ModelError(f"a video closes at position {position} but none was open")
            spans.append(IdSpan(True, tuple(ids[start : position + 1])))
            start, inside = position + 1, False
    if inside:
        raise ModelError(f"the video that opens at position {start} is never closed")
    if start < len(ids):
        spans.append(IdSpan(False, tuple(ids[start:])))
    return spans
