"""The errors a user can meet, each one line: what was wrong, what was got, how to mend it.

The command line prints the message of a :class:`TokvidError` and exits with code 2, without a traceback.
Nothing here knows where an error is shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class TokvidError(Exception):
    """Base of every error that is the user's to mend."""


class ConfigError(TokvidError, ValueError):
    """A recipe or configuration has an unknown key, a wrong type or an impossible value."""


class VideoError(TokvidError):
    """A media file is missing, empty, broken or has no video in it."""


class DataError(TokvidError, ValueError):
    """A folder or data set does not hold what was asked of it."""


class ShapeError(TokvidError, ValueError):
    """A tensor or array has the wrong shape, type or range."""


class CheckpointError(TokvidError):
    """A saved model or training state is missing, torn, or belongs to something else."""


class TrainingError(TokvidError):
    """A training run cannot go on, for instance because its loss is no longer finite."""


class ModelError(TokvidError, ValueError):
    """A model cannot do what was asked: an unknown name, a mode or a size it does not support."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` did you mean 'x'?`` for the closest known word, or the sorted list of known words."""
    known = sorted(known)
    close = get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
