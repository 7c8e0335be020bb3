"""Video tokens in a language model. Names are loaded when first used: importing this costs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokvid_lm.rollout import Rollout
    from tokvid_lm.segments import TextSegment, VideoSegment
    from tokvid_lm.video_lm import VideoLM
    from tokvid_lm.vocabulary import VideoVocabulary

__all__ = ["Rollout", "TextSegment", "VideoLM", "VideoSegment", "VideoVocabulary"]

_HOME = {
    "Rollout": "rollout",
    "TextSegment": "segments",
    "VideoLM": "video_lm",
    "VideoSegment": "segments",
    "VideoVocabulary": "vocabulary",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
