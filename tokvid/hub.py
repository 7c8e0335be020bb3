"""Folders by name: one on this machine as it is, one on the Hugging Face Hub as a copy in the Hub's cache.

Of a Hub repository only data is taken (:data:`DATA_FILES`): never code, never a pickle. Nothing here knows a model.
"""

from __future__ import annotations

import re
from pathlib import Path

from tokvid.errors import ModelError

# Weights, configurations, and what text tokenizers are saved in.
DATA_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def is_hub_id(name: str | Path) -> bool:
    """Whether ``name`` is text of the form ``org/name`` and no folder or file of this machine is called so."""
    return isinstance(name, str) and HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def local_folder(name: str | Path, *, revision: str | None = None) -> Path:
    """The folder ``name``, or that of a copy of the Hub's ``org/name`` at ``revision`` (a branch, tag or commit).

    A copy that is in the cache is used without a network (``HF_HUB_OFFLINE=1``). Raises :class:`ModelError` where
    there is neither, and for a ``revision`` of a folder of this machine.
    """
    if not is_hub_id(name):
        if not Path(name).is_dir():
            raise ModelError(
                f"there is no folder {str(name)!r}, and a model on the Hugging Face Hub is called org/name"
            )
        if revision is not None:
            raise ModelError(f"{name} is a folder of this machine, which has no revision {revision!r}: leave it out")
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=list(DATA_FILES)))
    except (OSError, ValueError) as error:  # the Hub's errors are both, and a network's are the first
        at = f" at revision {revision!r}" if revision is not None else ""
        raise ModelError(
            f"there is no folder {str(name)!r}, and the Hugging Face Hub gave no {name}{at}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
