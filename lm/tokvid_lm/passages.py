"""Plain text that is learned from beside videos, so that a pretrained model keeps what it knew.

A model that only sees captions and codes for long enough forgets how to write; some text of any kind in every step
(rehearsal, Robins 1995; for adapters as much as for whole models) is the cure that asks least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tokvid.errors import DataError

_PIECE = 1 << 16  # characters that are turned into ids at a time: a text tokenizer is slow on very long strings


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file; raises :class:`DataError` for a file that is not there, or is not text."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read the text {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start} is none; save it as UTF-8") from error


class Passages:
    """The ids of a text file end to end, and passages of ``length`` ids out of it.

    ``encode`` is that of a :class:`~tokvid_lm.processor.VideoProcessor`. Raises :class:`DataError` for a text that is
    shorter than one passage.
    """

    def __init__(self, path: str | Path, encode: Callable[[str], Sequence[int]], length: int) -> None:
        text = read_text(path)
        pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        self.ids = np.array([token for piece in pieces for token in encode(piece)], np.int32)
        self.length = length
        if len(self.ids) < length:
            raise DataError(
                f"the text {path} has {len(self.ids)} ids and a passage {length}: give more, or ask for less"
            )

    def at(self, place: float) -> npt.NDArray[np.int32]:
        """The passage that starts at ``place`` in [0, 1) of all places where one can start."""
        start = int(place * (len(self.ids) - self.length + 1))
        return self.ids[start : start + self.length]
