"""Files and folders that appear whole or not at all: written beside, flushed to the disk, then renamed.

A crash at any moment leaves either the old content or the new one under the final name, and at most a
``name.tmp`` beside it, which the next write replaces. Nothing here knows what is written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OLD = ".old.tmp"
_READ_AND_WRITE = 0o666


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write a file to; on success it takes the final name, on failure it is removed.

    The path given ends in ``.tmp``: a writer that guesses its format from the suffix has to be told the format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    _remove(beside)
    mode = _mode_of_new(beside)
    try:
        yield beside
        beside.chmod(mode)
        _flush(beside)
        beside.replace(path)
    except BaseException:
        _remove(beside)
        raise
    _flush(path.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty folder beside ``path`` to fill; on success it takes the final name, on failure it is removed.

    An existing folder ``path`` is replaced. No file system call swaps two folders everywhere, so in that case a crash
    between two renames can leave the old one as ``path.old.tmp``; the next call, or :func:`put_back`, names it again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    old = path.with_name(path.name + _OLD)
    _put_back(old, path)
    _remove(beside)
    _remove(old)
    beside.mkdir()
    try:
        yield beside
        _flush_tree(beside, beside.stat().st_mode & _READ_AND_WRITE)
        if path.exists():
            path.replace(old)
        try:
            beside.replace(path)
        except BaseException:
            if old.exists():
                old.replace(path)
            raise
    except BaseException:
        _remove(beside)
        raise
    _flush(path.parent)
    _remove(old)


def put_back(parent: Path) -> None:
    """Give the folders in ``parent`` their names again that a crash of :func:`atomic_folder` has left without one; for
    who knows that nobody writes there."""
    for old in parent.glob(f"*{_OLD}"):
        _put_back(old, old.with_name(old.name.removesuffix(_OLD)))


def _put_back(old: Path, path: Path) -> None:
    if old.exists() and not path.exists():
        old.replace(path)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 under ``path``, whole or not at all."""
    with atomic_path(path) as beside:
        beside.write_text(text, encoding="utf-8")


def remove_folder(path: Path) -> None:
    """Remove a folder so that a crash half-way leaves only a ``.tmp``, never half a folder under its name."""
    doomed = path.with_name(path.name + ".tmp")
    _remove(doomed)
    path.replace(doomed)
    _remove(doomed)


def _mode_of_new(path: Path) -> int:
    """That of a file which is made here. Safetensors makes its own for nobody but its user."""
    path.touch()
    mode = path.stat().st_mode & _READ_AND_WRITE
    path.unlink()
    return mode


def _flush_tree(folder: Path, mode: int) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            Path(root, name).chmod(mode)
            _flush(Path(root, name))
        _flush(Path(root))


def _flush(path: Path) -> None:
    """Ask the disk to hold ``path`` now: a rename may otherwise reach it before the content does."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
