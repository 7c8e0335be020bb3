"""One conversation about clips, the unit of every source of dialogues. It knows no file and no model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tokvid.errors import DataError

Speaker = Literal["user", "assistant"]
Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class DialogueTurn:
    """What one side says: text, and clips by their numbers in the dialogue, in any order."""

    role: Speaker
    pieces: tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """Turns about ``clips``, each uint8 ``[T,H,W,3]`` RGB; the user begins and the assistant has the last word.

    Raises :class:`DataError` for turns out of order, and for a clip that no turn shows or shows twice.
    """

    turns: tuple[DialogueTurn, ...]
    clips: tuple[Frames, ...]

    def __post_init__(self) -> None:
        roles = [turn.role for turn in self.turns]
        if not roles or len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
            raise DataError(
                f"in a dialogue user and assistant speak by turns, the user first and the assistant last, got {roles}"
            )
        shown = [piece for turn in self.turns for piece in turn.pieces if isinstance(piece, int)]
        if shown != list(range(len(self.clips))):
            raise DataError(
                f"a dialogue shows its {len(self.clips)} clips once each, in their order, got the numbers {shown}"
            )


class DialogueSource(ABC):
    """Dialogues whose clips have one shape: ``num_frames`` frames of ``size`` (H, W) at ``fps``; numbered from 0."""

    size: tuple[int, int]
    num_frames: int
    fps: float

    @abstractmethod
    def __len__(self) -> int:
        """Number of dialogues."""

    @abstractmethod
    def load(self, index: int) -> Dialogue:
        """Dialogue ``index``."""

    @abstractmethod
    def digest(self) -> str:
        """64 hex digits that differ where the dialogues do, without loading them."""
