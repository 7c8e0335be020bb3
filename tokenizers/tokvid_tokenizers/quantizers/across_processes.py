"""What the processes of a distributed run must agree on: a codebook is one, however many processes feed it."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def _many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


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


def from_first_process(tensor: Tensor) -> Tensor:
    """The first process's ``tensor`` everywhere, in place."""
    if _many():
        dist.broadcast(tensor, src=0)
    return tensor
