"""Which of the processes of one run this is, as launchers say it (torchrun, deepspeed, accelerate)."""

from __future__ import annotations

import os


def world_size() -> int:
    """How many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process writes what the whole run writes once: the first of many, or the only one."""
    return os.environ.get("RANK", "0") == "0"
