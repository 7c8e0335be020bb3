"""Where a result comes from: versions, seed, command and machine, as a JSON-able mapping.

It is written into checkpoints, reports and video files that people share, so it holds no host name, no user
name and no absolute path.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from tokvid import __version__

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "vector-quantize-pytorch",
    "sentencepiece",
    "datasets",
    "accelerate",
    "deepspeed",
    "safetensors",
    "huggingface_hub",
    "av",
    "numpy",
    "pillow",
)


def provenance(seed: int | None = None, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Versions, ``seed``, the command line (default: this process's) and the machine."""
    return {
        "versions": versions(),
        "seed": seed,
        "command": command_line(sys.argv if command is None else command),
        "machine": {
            "system": platform.system(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        },
    }


def versions() -> dict[str, str]:
    """The versions of tokvid, Python and those packages of ours that are installed."""
    found = {"tokvid": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def command_line(arguments: Sequence[str]) -> str:
    """The command as one line; of an absolute path only the last part is kept."""
    if not arguments:
        return ""
    program, *rest = arguments
    name = _last_part(program)
    if name in ("__main__.py", "main.py"):
        name = "tokvid"
    return " ".join([name, *(_quoted(_shorten(argument)) for argument in rest)])


def _quoted(argument: str) -> str:
    """As a shell reads it back; letters of any language, and the sign for what was left out, need no quotes."""
    return argument if re.fullmatch(r"[\w@%+=:,./…-]+", argument) else shlex.quote(argument)


def _shorten(argument: str) -> str:
    option, equals, value = argument.partition("=")
    if equals and _is_absolute(value):
        return f"{option}=…/{_last_part(value)}"
    return f"…/{_last_part(argument)}" if _is_absolute(argument) else argument


def _is_absolute(text: str) -> bool:
    return text.startswith("~") or PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()


def _last_part(text: str) -> str:
    return PureWindowsPath(text).name if "\\" in text else PurePosixPath(text).name
