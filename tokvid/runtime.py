"""The machine a run computes on: seeds, threads, determinism, devices and whether bf16 pays.

torch is imported inside the functions, so that importing this module costs nothing. Nothing here knows a model.
"""

from __future__ import annotations

import functools
import os
import platform
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from tokvid.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

# What a recipe may ask for: bf16 arithmetic, none, or bf16 where it pays (see computes_in_bf16).
Precision = Literal["auto", "bf16", "fp32"]
# bf16 has to be this much faster than fp32 in a matrix product before the casts around it are paid for.
BF16_GAIN = 1.5


def prepare(seed: int, threads: int | None = None, deterministic: bool | None = None) -> None:
    """Seed python, numpy and torch, fix the number of threads, and choose deterministic algorithms.

    ``deterministic=None`` chooses them where :func:`default_device` is the processor. On CUDA they take attention's
    fused kernels away (a masked pass then holds all scores) and some operations have none, so there a run that is
    repeated or resumed agrees only to rounding, unless they are asked for.

    ``threads=None`` takes what ``OMP_NUM_THREADS`` says, or every core this process may use. The order of floating
    point sums depends on the number of threads: a run that must give the same numbers again needs the same number.
    """
    import numpy as np
    import torch

    if not 0 <= seed < 2**32:
        raise ConfigError(f"a seed lies in [0, 2**32), got {seed}")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(threads or _wanted_threads() or usable_cores())
    if deterministic is None:
        deterministic = default_device().type == "cpu"
    if deterministic:
        # cuBLAS reads this when it starts; without it deterministic algorithms raise on the first matrix product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    # Filling every torch.empty with NaN finds bugs, and costs a pass over memory for each buffer.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Off: its trials are paid for every new shape, and clips come in many.
    torch.backends.cudnn.benchmark = False


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Inside, ``module`` is in evaluation mode; after it in the mode that it was in."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def _wanted_threads() -> int | None:
    """The number in ``OMP_NUM_THREADS`` (of a list, for nested regions, the first), or None where it is not set."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    if not text:
        return None
    first = text.partition(",")[0].strip()
    if not first.isdecimal() or int(first) < 1:
        raise ConfigError(f"OMP_NUM_THREADS is {text!r}: set it to a number of threads from 1 on, or unset it")
    return int(first)


def usable_cores() -> int:
    """The number of cores this process may use, which in a container is less than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS or Windows
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    return max(1, min(cores, _quota_cores() or cores))


def _quota_cores() -> int | None:
    """The processor quota of a Linux container in whole cores, or None where there is none."""
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:  # noqa: PTH123
            quota, period = file.read().split()
        return None if quota == "max" else max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):
        return None


def default_device() -> torch.device:
    """The first CUDA device, else the processor. Another device (``mps``) is used when it is asked for."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_is_fast(device: str | torch.device | None = None) -> bool:
    """Whether bf16 arithmetic is clearly faster than fp32 on ``device`` (default: :func:`default_device`).

    On a processor it is measured once per process, in about 50 ms. A busy machine can tip a close call, so a run that
    must be resumed exactly stores the answer instead of asking again.
    """
    import torch

    kind = torch.device(device).type if device is not None else default_device().type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "cpu" and _processor_bf16_gain() >= BF16_GAIN


def has_bf16(device: str | torch.device) -> bool:
    """Whether ``device`` has bf16 arithmetic of its own, instead of fp32 and many casts (46 times slower with AVX2).

    Of a processor it is what its instructions say and no measurement, which a busy machine can tip: an optimizer that
    went by that would not resume exactly, and processes of one run would part.
    """
    import torch

    if torch.device(device).type != "cpu":
        return True
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe() for probe in probes if probe is not None)


def loading_dtype() -> torch.dtype | None:
    """What models are loaded in to be used on :func:`default_device`: on the processor float32, since many processors
    emulate bf16, at up to a hundred times its time; elsewhere None, as they were saved."""
    import torch

    return torch.float32 if default_device().type == "cpu" else None


def computes_in_bf16(precision: Precision) -> bool:
    """Whether a run of that ``precision`` computes in bf16 here; ``auto`` asks :func:`bf16_is_fast`."""
    return precision == "bf16" or (precision == "auto" and bf16_is_fast())


@functools.cache
def _processor_bf16_gain() -> float:
    """How many times faster a bf16 matrix product is than the fp32 one, by the best of several alternating tries."""
    import torch

    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        return 0.0
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    operands = {dtype: torch.ones(512, 512, dtype=dtype) for dtype in best}
    with torch.inference_mode():
        for turn in range(30):
            for dtype, matrix in operands.items():
                start = time.perf_counter()
                torch.mm(matrix, matrix)
                best[dtype] = min(best[dtype], time.perf_counter() - start)
            if turn >= 2 and not 0.3 < best[torch.float32] / best[torch.bfloat16] < 4.0:
                break  # emulated bf16 would take seconds, and nothing is in doubt
    return best[torch.float32] / best[torch.bfloat16]


def check_compiles(device: str | torch.device, otherwise: str) -> None:
    """Raise :class:`ConfigError` unless torch.compile works on ``device``: it is tried, on a few numbers.

    ``otherwise`` says how to do without.

    What it needs beside torch are a C++ compiler and Python's headers, on a GPU triton. A try takes some 5 seconds,
    nearly all of which whoever compiles then saves; the first of a machine 20.
    """
    import torch

    def smooth(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(values) + 1

    try:
        torch.compile(smooth)(torch.ones(8, device=device))
    except Exception as error:  # of many types, those of the compilers among them
        reason = next((line for line in str(error).splitlines() if ": " in line), type(error).__name__)
        needs = "a C++ compiler (g++)" if torch.device(device).type == "cpu" else "triton and a C compiler"
        raise ConfigError(f"torch.compile does not work here ({reason}): install {needs}, or {otherwise}") from error


def describe() -> dict[str, Any]:
    """What this machine is, as JSON-able facts: no host name, no paths."""
    import torch

    devices = [
        {
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "bf16": bf16_is_fast("cuda"),
        }
        for properties in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor_name(),
        "processor_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "bf16_is_fast": bf16_is_fast("cpu"),
        "default_device": str(default_device()),
        "cuda_devices": devices,
    }


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):  # not on Windows
        return None
