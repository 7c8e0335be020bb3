"""DeepSpeed's universal checkpoint: what was cut up for some processes, so that any number of them can resume it.

The work is done by DeepSpeed's own program, which unpickles the checkpoint: only for those that you trust.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tokvid.checkpoint import SEAL, atomic_folder, seal, verify
from tokvid.errors import CheckpointError

_LATEST = "latest_universal"  # DeepSpeed's name of the file that names the folder beside it
_SUFFIX = "_universal"
_STATES = "global_step*"


def is_universal(checkpoint: Path) -> bool:
    """Whether :func:`make_universal` has been here."""
    return (checkpoint / _LATEST).is_file()


def make_universal(checkpoint: Path) -> None:
    """Put the universal form beside the parts in ``checkpoint``, which is replaced by the whole and sealed anew.

    Raises :class:`CheckpointError` for one that is torn or not of DeepSpeed, and with DeepSpeed's words where it fails.
    """
    verify(checkpoint)
    found = [folder for folder in sorted(checkpoint.glob(_STATES)) if not folder.name.endswith(_SUFFIX)]
    if len(found) != 1:
        raise CheckpointError(f"{checkpoint} is no checkpoint of DeepSpeed: it has no parts to put together")
    name = found[0].name + _SUFFIX
    with tempfile.TemporaryDirectory(dir=checkpoint.parent, suffix=".tmp") as scratch:
        whole = Path(scratch, name)
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        folders = ["--input_folder", str(found[0].resolve()), "--output_folder", str(whole)]
        workers = ["--num_extract_workers", "1", "--num_merge_workers", "1"]
        environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
        done = subprocess.run([*command, *folders, *workers], capture_output=True, text=True, env=environment)
        if done.returncode or not whole.is_dir():
            said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
            raise CheckpointError(f"DeepSpeed cannot put {found[0]} together; it says: {said[-1]}")
        with atomic_folder(checkpoint) as beside:
            shutil.copytree(checkpoint, beside, copy_function=os.link, dirs_exist_ok=True)
            shutil.rmtree(beside / name, ignore_errors=True)
            whole.rename(beside / name)
            # Links: what is written anew must not be written through them.
            (beside / _LATEST).unlink(missing_ok=True)
            (beside / _LATEST).write_text(name, encoding="utf-8")
            (beside / SEAL).unlink()
            seal(beside)
