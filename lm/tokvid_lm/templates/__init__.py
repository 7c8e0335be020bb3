"""How the codes of a video are dressed in a sequence: headers and separators belong to a template.

A new one is a small class with a header and a frame, and its name in ``_TEMPLATES``.
"""

from __future__ import annotations

from tokvid.errors import ModelError, did_you_mean
from tokvid_lm.templates.bare import BareTemplate
from tokvid_lm.templates.base import ACTION, CODE, Body, ParsedVideo, Template, VideoHeader
from tokvid_lm.templates.emu3 import Emu3Template
from tokvid_lm.templates.rows import RowsTemplate
from tokvid_lm.vocabulary import VideoVocabulary

_TEMPLATES: dict[str, type[Template]] = {
    template.kind: template for template in (BareTemplate, Emu3Template, RowsTemplate)
}


def build_template(kind: str, vocabulary: VideoVocabulary) -> Template:
    """The template named ``kind``; raises :class:`ModelError` for an unknown name."""
    if kind not in _TEMPLATES:
        raise ModelError(f"unknown template {kind!r}: {did_you_mean(kind, _TEMPLATES)}")
    return _TEMPLATES[kind](vocabulary)


__all__ = ["ACTION", "CODE", "Body", "ParsedVideo", "Template", "VideoHeader", "build_template"]
