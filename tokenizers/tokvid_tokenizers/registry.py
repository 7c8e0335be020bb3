"""Finding a codec by name: a preset or a folder."""

from __future__ import annotations

from pathlib import Path

import torch

from tokvid.errors import ModelError
from tokvid_tokenizers.codec import CONFIG_FILE, VideoCodec
from tokvid_tokenizers.presets import PRESETS, preset

PRESET_PREFIX = "preset:"


def list_codecs() -> list[str]:
    """Names :func:`load_codec` knows without a file."""
    return [PRESET_PREFIX + name for name in PRESETS]


def load_codec(name: str | Path, *, device: str | torch.device | None = None, seed: int = 0) -> VideoCodec:
    """Load a codec from a folder, or build ``preset:<name>`` with random weights drawn from ``seed``."""
    text = str(name)
    if text.startswith(PRESET_PREFIX):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            codec = VideoCodec(preset(text.removeprefix(PRESET_PREFIX))).eval()
    elif (Path(text) / CONFIG_FILE).is_file():
        codec = VideoCodec.from_pretrained(text)
    else:
        raise ModelError(f"no codec {text!r}: give a folder with a {CONFIG_FILE}, or one of {', '.join(list_codecs())}")
    return codec if device is None else codec.to(device)
