"""Checkpoints: folders ``step-000123`` of safetensors and JSON, sealed with a digest so that a torn one is seen.

A checkpoint holds named tensors and a nested ``state`` (optimisers, random generators, counters) that comes
back exactly. Nothing here knows a model; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokvid.atomic import atomic_folder, atomic_path, put_back, remove_folder
from tokvid.errors import CheckpointError
from tokvid.state_tree import PackedState, pack, unpack

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Newest",
    "SavedState",
    "atomic_folder",
    "atomic_path",
    "check_same_run",
    "digest_of_folder",
    "keep_last",
    "load_state",
    "newest_valid",
    "random_state",
    "read_state",
    "restore_random_state",
    "save_state",
    "seal",
    "step_folder",
    "tell_newest",
    "verify",
    "write_state",
]

FORMAT_VERSION = 1
_LONGEST = 60  # of a setting that is told, in characters
TENSORS = "tensors.safetensors"
STATE_TENSORS = "state.safetensors"
STATE = "state.json"
SEAL = "digest.json"
STEP_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class SavedState:
    """What :func:`save_state` was given: ``tensors`` on the processor, and the nested ``state``."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


@dataclass(frozen=True)
class Newest:
    """The newest whole checkpoint (None and step 0 when there is none) and the newer torn ones passed over."""

    path: Path | None
    step: int
    torn: list[Path] = field(default_factory=list)


def save_state(folder: str | Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a sealed checkpoint ``folder``, whole or not at all; an existing one is replaced.

    ``state`` may hold tensors and arrays at any depth. Tensors of any device are stored from the processor.
    """
    with atomic_folder(folder) as beside:
        write_state(beside, tensors, state)
        seal(beside)


def load_state(folder: str | Path) -> SavedState:
    """Read a checkpoint after checking its digests; raises CheckpointError when it is missing or torn."""
    verify(folder)
    return read_state(folder)


def read_state(folder: str | Path) -> SavedState:
    """The inverse of :func:`write_state`, for a folder that :func:`newest_valid` has checked; else :func:`load_state`.

    Raises CheckpointError when it holds no training state.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in (TENSORS, STATE_TENSORS, STATE):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}: it is not a training checkpoint")
    content = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format_version {content.get('format_version')}, this tokvid reads {FORMAT_VERSION}"
        )
    state = unpack(PackedState(load_file(folder / STATE_TENSORS), content["state"]))
    return SavedState(load_file(folder / TENSORS), state)


def write_state(folder: str | Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write the files of a checkpoint into an existing folder, unsealed: for a checkpoint with more files in it,

    ``with atomic_folder(path) as folder: codec.save_pretrained(folder); write_state(folder, ...); seal(folder)``.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    packed = pack(dict(state))
    save_file(_storable(tensors), folder / TENSORS)
    save_file(_storable(packed.tensors), folder / STATE_TENSORS)
    text = json.dumps({"format_version": FORMAT_VERSION, "state": packed.tree})
    (folder / STATE).write_text(text, encoding="utf-8")


def seal(folder: str | Path) -> None:
    """Write the size and SHA-256 of every file of ``folder`` into its ``digest.json``."""
    folder = Path(folder)
    files = {
        name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for name, path in _files(folder).items()
        if name != SEAL
    }
    text = json.dumps({"format_version": FORMAT_VERSION, "files": files}, indent=1)
    (folder / SEAL).write_text(text, encoding="utf-8")


def verify(folder: str | Path) -> None:
    """Raise CheckpointError unless ``folder`` is sealed and every sealed file is there with its size and digest."""
    folder = Path(folder)
    sealed = _check_sizes(folder)
    for name, facts in sealed.items():
        if _sha256(folder / name) != facts["sha256"]:
            raise CheckpointError(
                f"{folder} is torn: the content of {name} is not what was written; use an older checkpoint"
            )


def step_folder(folder: str | Path, step: int) -> Path:
    """The checkpoint of ``step`` in a run's folder: ``folder/step-000123``."""
    return Path(folder) / f"step-{step:06d}"


def newest_valid(folder: str | Path) -> Newest:
    """Find the newest checkpoint of a run that is whole, by digest; newer torn ones are named in ``torn``.

    For who holds the run's lock: one that was being replaced when its process ended gets its name back.
    """
    put_back(Path(folder))
    torn: list[Path] = []
    for step, path in reversed(_steps(Path(folder))):
        try:
            verify(path)
        except CheckpointError:
            torn.append(path)
            continue
        return Newest(path, step, torn)
    return Newest(None, 0, torn)


def tell_newest(newest: Newest, *, silent: bool = False) -> None:
    """Say on stderr, unless ``silent``, with which checkpoint a run goes on and which torn ones it passes over;
    :class:`CheckpointError` when all are torn."""
    for torn in () if silent else newest.torn:
        print(f"passed over {torn}: it is torn", file=sys.stderr)
    if newest.path is not None and not silent:
        print(f"going on from {newest.path}", file=sys.stderr)
    if newest.path is None and newest.torn:
        raise CheckpointError(
            f"every checkpoint in {newest.torn[0].parent} is torn: put one back that is whole, or remove them to begin"
            " anew"
        )


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a run, oldest first, whole or torn."""
    return [path for _, path in _steps(Path(folder))]


def check_unused(folder: str | Path) -> None:
    """Raise :class:`CheckpointError` when the output of a new run holds checkpoints: it would be mixed up with them."""
    found = checkpoints(folder)
    if found:
        raise CheckpointError(
            f"{found[-1]} is of an earlier run: add --resume to go on with it, give this run another output folder,"
            " or remove that one"
        )


def keep_last(folder: str | Path, n: int) -> list[Path]:
    """Remove all but the ``n`` newest whole checkpoints of a run and what is newer; returns the removed folders.

    Whole means here that every sealed file has its size: cheap, and a good checkpoint is not traded for a torn one.
    """
    if n < 1:
        raise CheckpointError(f"a run keeps at least one checkpoint, got {n}")
    whole = 0
    removed: list[Path] = []
    for _, path in reversed(_steps(Path(folder))):
        if whole >= n:
            remove_folder(path)
            removed.append(path)
            continue
        try:
            _check_sizes(path)
            whole += 1
        except CheckpointError:
            continue
    return removed


def digest_of_folder(folder: str | Path) -> str:
    """SHA-256 (64 hex digits) over names and contents of a folder's files; seals and ``.tmp`` files do not count."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    digest = hashlib.sha256()
    for name, path in _files(folder).items():
        if Path(name).name != SEAL:
            digest.update(f"{name}\0{_sha256(path)}\n".encode())
    return digest.hexdigest()


def check_same_run(checkpoint: Path, saved: object, wanted: Mapping[str, Any], *, others: Mapping[str, str]) -> None:
    """Raise :class:`CheckpointError` where a checkpoint was ``saved`` with other facts than ``wanted``, and say which.

    ``others`` has words for what a digest alone tells apart ("clips": "its clips").
    """
    mend = "give this run another output folder, or remove that one"
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"{checkpoint} is of another kind of training: {mend}")
    found = sorted(_differences(saved, wanted, ""), key=lambda difference: difference[0] in others)
    if not found:
        return
    (name, was, now), *more = found
    what = f"{others[name]} differ" if name in others else f"{name} was {_short(was)}, here it is {_short(now)}"
    count = f" (and {len(more)} more)" if more and name not in others else ""
    raise CheckpointError(f"{checkpoint} is of another run: {what}{count}; {mend}")


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any, Any]]:
    for name, now in wanted.items():
        was = saved.get(name)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            yield from _differences(was, now, f"{before}{name}.")
        elif was != now:
            yield before + name, was, now


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def random_state() -> dict[str, Any]:
    """The states of the random generators of python, numpy, torch and every CUDA device, fit for :func:`save_state`."""
    import numpy as np
    import torch

    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """The inverse of :func:`random_state`; raises CheckpointError on another number of CUDA devices."""
    import numpy as np
    import torch

    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(state["cuda"]) != devices:
        raise CheckpointError(
            f"the checkpoint holds random states of {len(state['cuda'])} CUDA devices, this machine has {devices}:"
            " resume on the same number of devices"
        )
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if devices:
        torch.cuda.set_rng_state_all(state["cuda"])


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous processor tensors of which no two share memory, as safetensors demands."""
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != plain.nbytes:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        stored[name] = plain
    return stored


def _steps(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    matches = [(STEP_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir()]
    return sorted((int(match[1]), path) for match, path in matches if match)


def _check_sizes(folder: Path) -> dict[str, Any]:
    """The sealed files of ``folder``, all of them there with their sizes."""
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint {folder}")
    try:
        sealed: dict[str, Any] = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
        expected = {name: int(facts["bytes"]) for name, facts in sealed.items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is torn: it has no {SEAL}; use an older checkpoint") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} is torn: its {SEAL} cannot be read; use an older checkpoint") from error
    if not expected:
        raise CheckpointError(f"{folder} is torn: its {SEAL} names no file; use an older checkpoint")
    for name, size in expected.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder} is torn: {name} is missing; use an older checkpoint")
        if path.stat().st_size != size:
            raise CheckpointError(
                f"{folder} is torn: {name} has {path.stat().st_size} bytes of {size}; use an older checkpoint"
            )
    return sealed


def _files(folder: Path) -> dict[str, Path]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp")
    return dict(sorted((path.relative_to(folder).as_posix(), path) for path in paths))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
