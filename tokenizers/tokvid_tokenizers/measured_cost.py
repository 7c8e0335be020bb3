"""What a codec costs on this machine: seconds and memory to encode and decode one clip, in a process of its own.

Its own, so that the peak is that of the clip and of nothing that ran before. What is counted and not measured is in
:mod:`tokvid_tokenizers.cost`.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tokvid.errors import ModelError
from tokvid.runtime import default_device, describe
from tokvid_tokenizers.codec import VideoCodec
from tokvid_tokenizers.registry import load_codec

MOST_RUNS = 5
SECONDS = 10.0
"""No run is begun after these; one is always measured."""


@dataclass(frozen=True, kw_only=True)
class MeasuredCost:
    """To encode and to decode one clip: medians of ``runs`` after one that is not counted, and the memory of both."""

    encode_seconds: float
    decode_seconds: float
    runs: int
    peak_memory_mb: float | None
    """10^6 bytes above what was held with the codec loaded, the clip included; None where the system does not say."""
    device: str
    """The name of the GPU, or of the processor."""
    threads: int
    dtype: str


def measure_cost(name: str | Path, num_frames: int, height: int, width: int) -> MeasuredCost:
    """Measure the codec ``name`` (as :func:`load_codec` knows it) on :func:`~tokvid.runtime.default_device`.

    One clip of noise, ``num_frames`` frames of ``height`` by ``width`` pixels; of a continuous codec the latents.
    Raises :class:`ModelError` for a size off the stride, or where the clip does not fit into memory.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, name, (num_frames, height, width)).result()
        except RuntimeError as error:
            # Of torch's own errors only those about memory are the user's to mend.
            if not isinstance(error, BrokenProcessPool) and "memory" not in str(error):
                raise
            raise ModelError(
                f"{name}: a clip of {num_frames}x{height}x{width} does not fit into the memory here (or something else"
                " ended the process that measured it): measure a smaller one"
            ) from error


def _measure(name: str | Path, size: tuple[int, int, int]) -> MeasuredCost:
    device = default_device()
    codec = load_codec(name, device=device)
    encode, decode = _ways(codec)
    codec.grid_for(*size)
    with torch.inference_mode():
        # A cell or two, so that what is loaded from the disk at the first call is not taken for the clip's.
        decode(encode(torch.zeros(1, 3, 1 + codec.temporal_stride, *2 * [codec.spatial_stride], device=device)))
        held = _begin_memory(device)
        frames = (torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(device)
        decode(encode(frames))
        times: list[tuple[float, float]] = []
        end = time.perf_counter() + SECONDS
        while not times or (len(times) < MOST_RUNS and time.perf_counter() < end):
            started = _now(device)
            encoded = encode(frames)
            between = _now(device)
            decode(encoded)
            times.append((between - started, _now(device) - between))
    peak = _peak_memory(device)
    return MeasuredCost(
        encode_seconds=statistics.median(encoding for encoding, _ in times),
        decode_seconds=statistics.median(decoding for _, decoding in times),
        runs=len(times),
        peak_memory_mb=None if held is None or peak is None else (peak - held) / 1e6,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else describe()["processor"],
        threads=torch.get_num_threads(),
        dtype=str(next(codec.parameters()).dtype).removeprefix("torch."),
    )


def _ways(codec: VideoCodec) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    return (codec.encode, codec.decode) if codec.num_codebooks else (codec.encode_latents, codec.decode_latents)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _begin_memory(device: torch.device) -> int | None:
    """Bytes held now, from where the peak begins anew; None where the system does not say."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        # Makes the peak what is held now: loading needed more for a moment.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _status("VmRSS")


def _peak_memory(device: torch.device) -> int | None:
    """Bytes held at the most since :func:`_begin_memory`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int | None:
    """Bytes that Linux says of this process, None on other systems.

    Not getrusage: on Linux its peak of a process that was started by a larger one is that one's.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
