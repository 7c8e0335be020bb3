"""What the processes of a distributed run do together: one run, however many processes feed it.

With one process every function gives back what it was given. All processes must call each, in the same order.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tokvid.errors import ConfigError, TrainingError
from tokvid.processes import world_size

T = TypeVar("T")

MEETING = "TOKVID_MEETING_SECONDS"
"""The environment's name of how long a process waits for all others to start (1,800 unless it is set)."""
_NAMED = 8
# The others wait while the first process writes, measures and draws, which may take longer than torch's ten minutes.
_WAIT = timedelta(hours=1)


@contextmanager
def joined_processes(*, alone: bool = False) -> Iterator[None]:
    """Meet the other processes that a launcher started (torchrun, deepspeed), on this one's device; part at the end.

    A process by itself joins nobody, unless ``alone`` asks for a group of one, which DeepSpeed wants. A group that the
    caller has made is used, and left as it is. Raises :class:`TrainingError` that names the processes that have not
    come after :data:`MEETING` seconds, and for one that is gone before the end.
    """
    if (world_size() == 1 and not alone) or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    store, rank, count = _meet() if world_size() > 1 else (dist.HashStore(), 0, 1)  # type: ignore[attr-defined]
    # DeepSpeed asks for it, whoever has made the group; left there it would make others look for one.
    set_here = "LOCAL_RANK" not in os.environ
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_WAIT)
        yield
    except RuntimeError as error:
        if not _is_of_the_group(error):
            raise
        said = str(error).splitlines()[0]
        raise TrainingError(
            f"another process of this run is gone, and said why if it could (here: {said}): start all of them again"
            " with --resume"
        ) from error
    finally:
        if set_here:
            del os.environ["LOCAL_RANK"]
        if dist.is_initialized():
            _end_group()


def _end_group() -> None:
    """DeepSpeed, where it was used, keeps groups beside it, of which its next start would make use."""
    deepspeed = sys.modules.get("deepspeed")
    ends = dist if deepspeed is None or not deepspeed.comm.is_initialized() else deepspeed.comm
    ends.destroy_process_group()


def _meet() -> tuple[Any, int, int]:
    """Where the processes of the run find each other, which of them this is, and how many they are, once all are there.

    torch would wait half an hour, and then not say for whom.
    """
    seconds = _whole_number(MEETING, "1800", least=1)
    rank, count, port = (_whole_number(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    host = os.environ.get("MASTER_ADDR", "")
    # torchrun keeps the store itself, and leaves in it what an earlier start of the run has written.
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    names = [f"here/{number}" for number in range(count)]
    patience = timedelta(seconds=seconds)
    try:
        tcp = dist.TCPStore(host, port, count, hosts, timeout=patience, wait_for_workers=False)  # type: ignore[attr-defined]
    except dist.DistError as error:
        raise TrainingError(
            f"the first process of the run did not answer at {host}:{port} in {seconds} seconds: look whether it runs,"
            f" and whether that address can be reached from here ({MEETING} sets the seconds)"
        ) from error
    store = dist.PrefixStore(f"tokvid/{start}", tcp)  # type: ignore[attr-defined]
    try:
        store.set(names[rank], "1")
        store.wait(names, patience)
    except dist.DistError as error:
        raise TrainingError(
            f"of {count} processes of the run {_missing(store, names)} did not come to {host}:{port} in {seconds}"
            f" seconds: look what they say, and start all of them again ({MEETING} sets the seconds)"
        ) from error
    return store, rank, count


def _whole_number(name: str, usual: str = "", *, least: int = 0) -> int:
    """What the environment says."""
    text = os.environ.get(name, usual)
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(
            f"the environment's {name} must be a whole number from {least}, got {text!r}: let torchrun or deepspeed"
            " start the run"
        )
    return int(text)


def _missing(store: Any, names: list[str]) -> str:
    try:
        missing = [str(number) for number, name in enumerate(names) if not store.check([name])]
    except dist.DistError:  # the store went with the first process, which has waited as long
        return "some (the first one has said which)"
    return ", ".join(missing[:_NAMED]) + (f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else "")


def _is_of_the_group(error: RuntimeError) -> bool:
    """Whether it is the group's own: gloo's have no class of their own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def rank_and_count() -> tuple[int, int]:
    """Which process this is, from 0, and of how many."""
    return (dist.get_rank(), dist.get_world_size()) if _many() else (0, 1)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of each process's ``tensor``, in place; with one process the tensor itself."""
    if _many():
        dist.all_reduce(tensor)
    return tensor


def mean_over_processes(tensor: Tensor) -> Tensor:
    """The mean of each process's ``tensor``; its gradient is that of this process's, which data-parallel training
    averages."""
    if not _many():
        return tensor
    mean = tensor.detach().clone()
    dist.all_reduce(mean)
    return tensor + (mean / dist.get_world_size() - tensor.detach())


def means_over_processes(figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each of ``figures``, scalars of the same names everywhere, without gradients."""
    if not _many() or not figures:
        return dict(figures)
    means = mean_over_processes(torch.stack([figure.detach().float() for figure in figures.values()]))
    return dict(zip(figures, means.unbind(), strict=True))


def of_all_processes(tensor: Tensor) -> Tensor:
    """Every process's ``tensor`` ``[N,...]`` one after the other, ``[processes*N,...]``, without gradients."""
    if not _many():
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


def noise_like(tensor: Tensor) -> Tensor:
    """Standard Gaussian noise of the shape of ``tensor`` ``[N,...]``: this process's part of what one would draw."""
    _, processes = rank_and_count()
    shape = (processes * len(tensor), *tensor.shape[1:])
    return _part(torch.randn(shape, dtype=tensor.dtype, device=tensor.device))


def uniform_draws(count: int, device: torch.device) -> Tensor:
    """``count`` numbers in [0, 1): this process's part of what one would draw for all."""
    _, processes = rank_and_count()
    return _part(torch.rand(processes * count, device=device))


def _part(whole: Tensor) -> Tensor:
    """This process's rows of what is drawn for all."""
    rank, processes = rank_and_count()
    return whole.chunk(processes)[rank]


def found_by_the_first(find: Callable[[], T]) -> T:
    """What ``find`` finds in the first process: in a folder that all see, another may see what was a moment ago."""
    if not _many():
        return find()
    found: list[Any] = [find() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    answer: T = found[0]
    return answer


def any_process(answer: bool, device: torch.device) -> bool:
    """Whether a process says yes."""
    if not _many():
        return answer
    return bool(sum_over_processes(torch.tensor(int(answer), device=device)))


def _many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
