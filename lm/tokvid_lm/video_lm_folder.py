"""The folder of a saved video language model: what is in ``video_lm.json``, and what may be replaced."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokvid.errors import CheckpointError, ConfigError, ModelError
from tokvid.saved_json import read_mapping
from tokvid_lm.vocabulary import VideoVocabulary
from tokvid_tokenizers import VideoCodec, load_codec

VIDEO_FILE = "video_lm.json"
CODEC_FOLDER = "codec"
PROCESSOR_FILE = "processor_config.json"
PROCESSOR = {"processor_class": "TokvidProcessor"}
"""By this transformers' AutoProcessor finds ours; where tokvid is not installed it gives the text tokenizer."""
# What an earlier, larger or smaller model may have been cut into.
_WEIGHTS = re.compile(r"model.*\.safetensors(\.index\.json)?")
FORMAT_VERSION = 2


def check_nothing_is_lost(folder: Path, beside: Path) -> None:
    """Raise :class:`CheckpointError` where ``folder`` holds more than ``beside``, which is about to replace it."""
    there, new = ({path.name for path in place.iterdir()} if place.is_dir() else set() for place in (folder, beside))
    lost = sorted(name for name in there - new if not _WEIGHTS.fullmatch(name))
    if lost:
        raise CheckpointError(f"{folder} holds more than a VideoLM ({lost[0]}); choose another folder or move it away")


def read_facts(folder: Path) -> dict[str, Any]:
    """What ``video_lm.json`` says; :class:`CheckpointError` for a folder that holds no VideoLM of this format."""
    path = folder / VIDEO_FILE
    if not path.is_file():
        inner = next((found for found in sorted(folder.glob(f"*/{VIDEO_FILE}"))), None)
        mend = f"did you mean {inner.parent}?" if inner else "give the lm folder of a run of training"
        raise CheckpointError(f"{path} is missing: this folder holds no VideoLM; {mend}")
    facts = read_mapping(path, "VideoLM")
    version = facts.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format_version {version!r}, this tokvid reads {FORMAT_VERSION}: update it")
    missing = sorted({"template", "layout", "positions", "codec_id", "vocabulary", "settings"} - set(facts))
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; save the model again")
    for name in ("template", "layout", "positions"):
        if not isinstance(facts[name], str):
            raise CheckpointError(f"{path} names no {name} but {facts[name]!r}; save the model again")
    return facts


def saved_vocabulary(folder: Path, facts: dict[str, Any]) -> VideoVocabulary:
    """The ids that ``facts`` describe; :class:`CheckpointError` where they do not fit together."""
    try:
        return VideoVocabulary.from_mapping(facts["vocabulary"])
    except (ConfigError, ModelError) as error:
        raise CheckpointError(f"{folder / VIDEO_FILE}: {error}") from error


def saved_codec(folder: Path, facts: dict[str, Any]) -> VideoCodec:
    """The codec in ``folder``; :class:`CheckpointError` for another one than the model speaks."""
    codec = load_codec(folder / CODEC_FOLDER)
    if codec.codec_id != facts["codec_id"]:
        raise CheckpointError(
            f"{folder / CODEC_FOLDER} holds {codec.codec_id}, but the model speaks {facts['codec_id']}:"
            " put the right codec there"
        )
    return codec
