"""Folders by name: one on this machine as it is, one that comes with tokvid, one on the Hub as a copy in its cache.

Of a Hub repository only data is taken (:data:`DATA_FILES`): never code, never a pickle. Nothing here knows a model.
"""

from __future__ import annotations

import re
from pathlib import Path

from tokvid.errors import ModelError
from tokvid.shipped import hub_cards_folder

# Weights, configurations, and what text tokenizers are saved in.
DATA_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def is_hub_id(name: str | Path) -> bool:
    """Whether ``name`` is text of the form ``org/name``, and nothing here or that comes with tokvid is called so."""
    return isinstance(name, str) and HUB_ID.fullmatch(name) is not None and not local_path(name).exists()


def local_folder(name: str | Path, *, revision: str | None = None) -> Path:
    """The folder ``name``, or that of a copy of the Hub's ``org/name`` at ``revision`` (a branch, tag or commit).

    Where there is no folder ``name`` it may come with tokvid: see :func:`local_path`. A copy that is in the cache is
    used without a network (``HF_HUB_OFFLINE=1``). Raises :class:`ModelError` where there is none of these, and for a
    ``revision`` of a folder of this machine.
    """
    if not is_hub_id(name):
        folder = local_path(name)
        if not folder.is_dir():
            raise ModelError(
                f"there is no folder {str(name)!r}, a model on the Hugging Face Hub is called org/name, and with tokvid"
                f" comes {', '.join(shipped_models())}"
            )
        if revision is not None:
            raise ModelError(f"{name} is a folder of this machine, which has no revision {revision!r}: leave it out")
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=list(DATA_FILES)))
    except (OSError, ValueError) as error:  # the Hub's errors are both, and a network's are the first
        at = f" at revision {revision!r}" if revision is not None else ""
        raise ModelError(
            f"there is no folder {str(name)!r}, and the Hugging Face Hub gave no {name}{at}: {_first_line(error)}"
        ) from error


def shipped_models() -> list[str]:
    """Names of the models that come with tokvid."""
    return sorted(folder.name for folder in hub_cards_folder().iterdir() if (folder / "config.json").is_file())


def local_path(name: str | Path) -> Path:
    """``name`` as a path, which need not exist; or what comes with tokvid, where nothing here is called so.

    That are :func:`shipped_models` and their codecs (``tokvid-sprites-lm/codec``), by text; a ``Path`` is a path.
    """
    path = Path(name)
    if isinstance(name, str) and not path.exists():
        model, _, inside = name.partition("/")
        if inside in ("", "codec") and model in shipped_models():
            return hub_cards_folder() / model / inside
    return path


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
