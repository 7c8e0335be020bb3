"""Which of the processes of one run this is, as launchers say it (torchrun, deepspeed, accelerate)."""

from __future__ import annotations

import os


def world_size() -> int:
    """How many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leave_group() -> None:
    """Leave the group of processes that launchers and terminals signal as a whole.

    For processes that load data: a training that is told to end goes on to a safe moment, and needs them until then.
    """
    if hasattr(os, "setpgid") and os.getpgrp() != os.getpid():
        os.setpgid(0, 0)


def is_main_process() -> bool:
    """Whether this process writes what the whole run writes once: the first of many, or the only one."""
    # RANK alone says nothing: job systems leave it behind.
    return world_size() == 1 or os.environ.get("RANK", "0") == "0"
