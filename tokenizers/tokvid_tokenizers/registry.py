"""Finding a codec by name: a preset, a folder, or a model on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import torch

from tokvid.errors import ModelError
from tokvid.hub import CODEC_PREFIXES, HubOptions, is_hub_id, local_path
from tokvid_tokenizers.codec import VideoCodec
from tokvid_tokenizers.codec_folder import CONFIG_FILE
from tokvid_tokenizers.presets import PRESETS, preset
from tokvid_tokenizers.published.vidtok_weights import VERIFIED, load_vidtok

PRESET_PREFIX, VIDTOK_PREFIX = CODEC_PREFIXES
_OURS = "random weights to be trained: streams and tiles equal to the whole, tests/tokenizers/test_streaming.py"


def list_codecs() -> dict[str, str]:
    """What :func:`load_codec` takes besides folders of ours, and for each what was verified and how."""
    presets = dict.fromkeys((PRESET_PREFIX + name for name in PRESETS), _OURS)
    return {**presets, VIDTOK_PREFIX + "PATH-OR-REPO": VERIFIED}


def load_codec(
    name: str | Path, *, device: str | torch.device | None = None, seed: int = 0, **hub: Unpack[HubOptions]
) -> VideoCodec:
    """Load a codec from a folder or from the Hub's ``org/name``, or build ``preset:<name>``.

    ``vidtok:`` before a folder or ``org/name`` takes a codec of VidTok as diffusers keeps it, too. With tokvid comes
    ``tokvid-sprites-lm/codec``. A preset has random weights drawn from ``seed``; only a codec on the Hub has a
    ``revision`` (see :class:`~tokvid.hub.HubOptions`). Raises :class:`ModelError` where there is no such codec.
    """
    codec = _load(name, seed, hub)
    return codec if device is None else codec.to(device)


def _load(name: str | Path, seed: int, hub: HubOptions) -> VideoCodec:
    text = str(name)
    if text.startswith(VIDTOK_PREFIX):
        return load_vidtok(text.removeprefix(VIDTOK_PREFIX), **hub)
    if hub.get("revision") is not None and not is_hub_id(name):
        raise ModelError(f"{text} is not on the Hub and has no revision {hub.get('revision')!r}: leave it out")
    if is_hub_id(name) or hub.get("subfolder"):
        return VideoCodec.from_pretrained(name, **hub)
    if text.startswith(PRESET_PREFIX):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return VideoCodec(preset(text.removeprefix(PRESET_PREFIX))).eval()
    return VideoCodec.from_pretrained(_folder(name))


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
