"""Finding a codec by name: a preset, a folder, or a model on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import torch

from tokvid.errors import ModelError
from tokvid.hub import HubOptions, is_hub_id, local_path
from tokvid_tokenizers.codec import CONFIG_FILE, VideoCodec
from tokvid_tokenizers.presets import PRESETS, preset

PRESET_PREFIX = "preset:"


def list_codecs() -> list[str]:
    """Names :func:`load_codec` knows without a file."""
    return [PRESET_PREFIX + name for name in PRESETS]


def load_codec(
    name: str | Path, *, device: str | torch.device | None = None, seed: int = 0, **hub: Unpack[HubOptions]
) -> VideoCodec:
    """Load a codec from a folder or from the Hub's ``org/name``, or build ``preset:<name>``.

    ``tokvid-sprites-lm/codec`` comes with tokvid. A preset has random weights drawn from ``seed``; only a codec on the
    Hub has a ``revision`` (see :class:`~tokvid.hub.HubOptions`). Raises :class:`ModelError` where there is no such
    codec.
    """
    text = str(name)
    if hub.get("revision") is not None and not is_hub_id(name):
        raise ModelError(f"{text} is not on the Hub and has no revision {hub.get('revision')!r}: leave it out")
    if is_hub_id(name) or hub.get("subfolder"):
        codec = VideoCodec.from_pretrained(name, **hub)
    elif text.startswith(PRESET_PREFIX):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            codec = VideoCodec(preset(text.removeprefix(PRESET_PREFIX))).eval()
    else:
        codec = VideoCodec.from_pretrained(_folder(name))
    return codec if device is None else codec.to(device)


def _folder(name: str | Path) -> Path:
    """The folder of a codec of this machine, or of one that comes with tokvid."""
    text = str(name)
    folder = local_path(name)
    inner = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
    if inner:  # a run, or a language model with its codec
        raise ModelError(f"no codec {text!r}: did you mean {f'{text}/{inner[0]}'!r}?")
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(
            f"no codec {text!r}: give a folder with a {CONFIG_FILE}, a model on the Hub (org/name), or one of"
            f" {', '.join(list_codecs())}"
        )
    return folder
