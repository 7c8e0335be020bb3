"""Adapters on the Hugging Face Hub: the folder that a training with ``model.lora`` leaves, with a card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Unpack

from tokvid.errors import ModelError
from tokvid.hub import HUB_ID, PushOptions, push_folder
from tokvid.hub_card import Run
from tokvid.saved_json import read_mapping
from tokvid_lm.adapters import ADAPTER_CONFIG, base_of
from tokvid_lm.card import lm_card
from tokvid_lm.video_lm import VideoLM


def push_adapters(
    folder: str | Path,
    name: str,
    *,
    base: str | None = None,
    run: Run | None = None,
    license: str | None = None,
    **hub: Unpack[PushOptions],
) -> str:
    """Put the adapters in ``folder`` on the Hub as ``org/name``; the address of the commit.

    ``base`` is what the Hub calls the model that they were trained on, where the training called it otherwise (a
    folder, say). They are loaded before; from there peft loads them, and :meth:`VideoLM.from_pretrained`. Raises
    :class:`ModelError` where no name of the Hub is known.
    """
    folder = Path(folder)
    lm = VideoLM.from_pretrained(folder)
    base = base or base_of(folder)
    if base is None or HUB_ID.fullmatch(base) is None or Path(base).exists():
        raise ModelError(f"the adapters in {folder} are of {base!r}, which others do not have: give --base ORG/NAME")

    def write(beside: Path) -> None:
        shutil.copytree(folder, beside)
        config = read_mapping(beside / ADAPTER_CONFIG, "adapters")
        text = json.dumps({**config, "base_model_name_or_path": base}, indent=2, sort_keys=True) + "\n"
        (beside / ADAPTER_CONFIG).write_text(text, encoding="utf-8")

    return push_folder(write, name, card=lm_card(name, lm, run=run, license=license, base=base), **hub)
