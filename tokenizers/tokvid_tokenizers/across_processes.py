"""What the processes of a distributed run do together: one run, however many processes feed it.

With one process every function gives back what it was given. All processes must call each, in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tokvid.processes import world_size


@contextmanager
def joined_processes(*, alone: bool = False) -> Iterator[None]:
    """Meet the other processes that a launcher started (torchrun, deepspeed), on this one's device; part at the end.

    A process by itself joins nobody, unless ``alone`` asks for a group of one, which DeepSpeed wants. A group that the
    caller has made is used, and left as it is.
    """
    if (world_size() == 1 and not alone) or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if world_size() == 1:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it, whoever has made the group
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    else:
        dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


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
    rank, processes = rank_and_count()
    whole = torch.randn(processes * len(tensor), *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
    return whole[rank * len(tensor) : (rank + 1) * len(tensor)]


def objects_of_all_processes(mine: Any) -> list[Any]:
    """What each process has, by its rank; on the first alone, elsewhere nothing."""
    if not _many():
        return [mine]
    gathered: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine, gathered)
    return gathered or []


def any_process(answer: bool, device: torch.device) -> bool:
    """Whether a process says yes."""
    if not _many():
        return answer
    return bool(sum_over_processes(torch.tensor(int(answer), device=device)))


def _many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
