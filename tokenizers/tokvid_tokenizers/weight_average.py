"""A moving average of a network's weights, which is what a run evaluates and saves (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Of the floating point weights of ``network``; everything else is taken as it is.

    The first steps count more than ``decay`` says, so that the average forgets where the run began.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = network
        self.decay = decay
        self.average = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average after finished step ``step`` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in self.network.state_dict().items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor, 1 - decay)
            else:
                self.average[name].copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network has the average's weights inside, its own again after."""
        own = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        try:
            yield
        finally:
            self.network.load_state_dict(own)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up an average."""
        for name, tensor in tensors.items():
            self.average[name].copy_(tensor)
