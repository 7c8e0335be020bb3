"""One run at a time in an output folder: two would overwrite each other's checkpoints and logs.

The lock is the system's own, of a process and not of its children, so that it is gone with the process that holds it,
however that ends. Where a system or a file system has none nothing is locked.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tokvid.checkpoint import check_unused
from tokvid.errors import CheckpointError

LOCK_FILE = "run.lock"
_HELD = (errno.EACCES, errno.EAGAIN)


@contextmanager
def only_run(output: str | Path, *, wanted: bool = True) -> Iterator[None]:
    """Keep other processes' runs out of the folder ``output``, which is made, while the block lasts; nothing if not
    ``wanted``.

    Raises :class:`CheckpointError` naming the process that is in it.
    """
    if not wanted:
        yield
        return
    path = Path(output) / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def check_output(output: str | Path, *, resume: bool) -> None:
    """Raise :class:`CheckpointError` where a run could not begin: another is in ``output``, or, unless it is to
    ``resume``, has left checkpoints there. For what is long before :func:`only_run`."""
    path = Path(output) / LOCK_FILE
    with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
        _lock(file, path.parent, shared=True)  # processes of one run that look at the same time are not in the way
    if not resume:
        check_unused(output)


def _locked(path: Path) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            _lock(file, path.parent)
            if _is_at(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # its last holder took it away between our opening and our locking it


def _lock(file: IO[str], output: Path, *, shared: bool = False) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _HELD:
            return
        file.seek(0)
        raise CheckpointError(
            f"another run ({file.read().strip() or 'just started'}) writes into {output}: give this one another output"
            " folder, or wait for that one"
        ) from None


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
