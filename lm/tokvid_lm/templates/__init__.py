"""How the codes of a video are dressed in a sequence: headers and separators belong to a template."""

from __future__ import annotations

from tokvid.errors import ModelError, did_you_mean
from tokvid_lm.templates.bare import CODE, BareTemplate
from tokvid_lm.templates.rows import RowsTemplate
from tokvid_lm.vocabulary import VideoVocabulary

_TEMPLATES: dict[str, type[BareTemplate]] = {template.kind: template for template in (BareTemplate, RowsTemplate)}


def build_template(kind: str, vocabulary: VideoVocabulary) -> BareTemplate:
    """The template named ``kind``; raises :class:`ModelError` for an unknown name."""
    if kind not in _TEMPLATES:
        raise ModelError(f"unknown template {kind!r}: {did_you_mean(kind, _TEMPLATES)}")
    return _TEMPLATES[kind](vocabulary)


__all__ = ["CODE", "BareTemplate", "RowsTemplate", "build_template"]
