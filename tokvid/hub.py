"""Folders by name: one on this machine as it is, one that comes with tokvid, one on the Hub as a copy in its cache; and
the way back, a folder onto the Hub.

Of a Hub repository only data is taken (:data:`DATA_FILES`): never code, never a pickle. Nothing here knows a model.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, TypedDict, Unpack

from tokvid.errors import ModelError
from tokvid.shipped import hub_cards_folder

# Weights, configurations, and what text tokenizers are saved in.
DATA_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
CODEC_PREFIXES = ("preset:", "vidtok:")
"""Before the name of a codec: built of a preset; of another project, as that or tokvid saved it."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# What other projects keep weights in, and only running what it says can read.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".jit", ".torchscript")
# What loading reads by its name: of an earlier model there, a file that the new one lacks would be taken for its own.
_REPLACED = ("*.safetensors", "*.json")


class PushOptions(TypedDict, total=False):
    """How a model is put on the Hub; see :func:`upload_folder`."""

    revision: str | None
    private: bool | None
    token: str | None
    message: str


class HubOptions(TypedDict, total=False):
    """Where on the Hub, and how it is asked: a ``revision`` (branch, tag or commit), a ``subfolder`` of the repository
    (of a folder of this machine, too), a ``token`` in place of the one that the client has kept, another ``cache_dir``;
    with ``local_files_only`` the network is not asked at all."""

    revision: str | None
    subfolder: str
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool


def is_hub_id(name: str | Path) -> bool:
    """Whether ``name`` is text of the form ``org/name``, and nothing here or that comes with tokvid is called so."""
    return isinstance(name, str) and HUB_ID.fullmatch(name) is not None and not local_path(name).exists()


def local_folder(
    name: str | Path,
    *,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder ``name``, or that of a copy of the Hub's ``org/name``; see :class:`HubOptions`.

    Where there is no folder ``name`` it may come with tokvid: see :func:`local_path`. A copy that is in the cache is
    used without a network (``HF_HUB_OFFLINE=1``). Raises :class:`ModelError` where there is none of these, for a
    ``revision`` of a folder of this machine, a ``subfolder`` that leaves its folder, and a repository whose weights
    only unpickling could read.
    """
    inside = PurePosixPath(subfolder)
    if inside.is_absolute() or ".." in inside.parts or "\\" in subfolder:
        raise ModelError(f"subfolder is a path inside the folder {name}, got {subfolder!r}")
    if not is_hub_id(name):
        folder = local_path(name)
        if not folder.is_dir():
            raise ModelError(
                f"there is no folder {str(name)!r}, a model on the Hugging Face Hub is called org/name, and with tokvid"
                f" comes {', '.join(shipped_models())}"
            )
        if revision is not None:
            raise ModelError(f"{name} is a folder of this machine, which has no revision {revision!r}: leave it out")
    else:
        folder = _snapshot(
            str(name),
            revision=revision,
            patterns=[str(inside / pattern) for pattern in DATA_FILES],
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    if not (folder / inside).is_dir():
        lacks = f"has no subfolder {subfolder!r}" if subfolder else "holds no model: neither safetensors nor JSON"
        raise ModelError(f"{name} {lacks}")
    return folder / inside


def refuse_pickles(folder: Path) -> None:
    """Raise :class:`ModelError` for a ``folder`` without safetensors whose weights only unpickling could read."""
    _refuse_pickles(str(folder), [path.name for path in folder.iterdir()])


def push_folder(write: Callable[[Path], object], name: str, *, card: str, **options: Unpack[PushOptions]) -> str:
    """Put on the Hub, as ``org/name``, what ``write(folder)`` writes and ``card`` as README; the address of the commit.

    Weights and configurations of a model that was there go; see :func:`upload_folder` for everything else.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pushed"
        write(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        return upload_folder(folder, name, replaced=_REPLACED, **options)


def upload_folder(
    folder: Path,
    name: str,
    *,
    replaced: Sequence[str],
    kind: Literal["model", "dataset"] = "model",
    revision: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    message: str = "tokvid",
) -> str:
    """Put ``folder`` on the Hub as the model or data set ``org/name``; the address of the commit.

    The repository is made where there is none (``private`` or not, as the account usually does), and the branch
    ``revision``. It is one commit, there whole or not at all; files there of the patterns ``replaced`` go, others stay.
    Raises :class:`ModelError` for a name of another form, and with what the Hub or the network says.
    """
    if HUB_ID.fullmatch(name) is None:
        raise ModelError(f"a {kind} on the Hugging Face Hub is called org/name, got {name!r}")
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True, repo_type=kind)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True, repo_type=kind)
        commit = api.upload_folder(
            repo_id=name,
            repo_type=kind,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            delete_patterns=list(replaced),
        )
    except _errors() as error:
        raise ModelError(
            f"the Hugging Face Hub did not take {name}, where no file has changed: {_first_line(error)}"
        ) from error
    return str(commit.commit_url)


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


def _snapshot(
    name: str,
    *,
    revision: str | None,
    patterns: list[str],
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Path:
    """A copy of the data of ``org/name`` in the cache."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        )
    except _errors() as error:
        at = f" at revision {revision!r}" if revision is not None else ""
        raise ModelError(
            f"there is no folder {name!r}, and the Hugging Face Hub gave no {name}{at}: {_first_line(error)}"
        ) from error
    if not local_files_only and not any(folder.rglob("*.safetensors")):
        try:
            names = HfApi(token=token).list_repo_files(name, revision=revision)
        except _errors():
            names = []  # no network: what is missing is said by who looks for it
        _refuse_pickles(name, names)
    return folder


def _refuse_pickles(place: str, names: list[str]) -> None:
    if any(name.endswith(".safetensors") for name in names):
        return
    pickled = [name for name in sorted(names) if name.endswith(_PICKLES)]
    if pickled:
        raise ModelError(
            f"{place} holds its weights in {pickled[0]}, and reading that would run what it says: tokvid reads"
            " safetensors alone; ask its authors for them, or convert it where you trust it"
        )


def _errors() -> tuple[type[Exception], ...]:
    """What the client raises: of the Hub, of names that are none, and of the network."""
    from huggingface_hub import errors

    return (OSError, ValueError, errors.HTTPError)  # type: ignore[attr-defined]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
