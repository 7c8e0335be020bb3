"""Blocks in a row, and what training can do to all of them: keep less and compute twice, compile them.

It knows nothing of what a block computes, only how it is called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokvid.errors import ConfigError
from tokvid.runtime import check_compiles
from tokvid_tokenizers.layers.past import Past


class BlockStack(nn.Module):
    """``blocks`` in a row, each called as ``block(features, t, past)`` and keeping the shape.

    With ``recompute`` the backward pass computes each block again instead of keeping what happened in it (gradient
    checkpointing, Chen et al. 2016, arXiv 1604.06174): the same numbers in less memory and about a third more time.
    With ``compiled`` each block goes through torch.compile: the same numbers up to rounding. Both are for training
    alone; in a clip that goes through in blocks, or without gradients, they change nothing.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.recompute = False
        self.compiled = False

    def forward(self, features: Tensor, t: int, past: Past | None = None) -> Tensor:
        """Features of t latent frames -> the same shape."""
        # Not with a past: what a block leaves there it would leave twice, and every past would be compiled anew.
        if past is not None or not torch.is_grad_enabled():
            for block in self.blocks:
                features = block(features, t, past)
            return features
        call = _compiled_call() if self.compiled else _call
        for block in self.blocks:
            if self.recompute:
                # No block draws at random, so there is no generator to wind back.
                features = checkpoint(call, block, features, t, use_reentrant=False, preserve_rng_state=False)
            else:
                features = call(block, features, t)
        return features


def recompute_blocks(network: nn.Module, enabled: bool = True) -> None:
    """Switch the gradient checkpointing of every stack in ``network``; nothing of it is saved with the weights."""
    for stack in _stacks(network, "training.checkpoint_blocks", enabled):
        stack.recompute = enabled


def compile_blocks(network: nn.Module, enabled: bool = True) -> None:
    """Switch torch.compile of every stack in ``network``; no name of a weight changes.

    Raises :class:`ConfigError` where torch.compile does not work on the device of ``network``.
    """
    if enabled:
        check_compiles(next(network.parameters()).device, "leave training.compile out")
    for stack in _stacks(network, "training.compile", enabled):
        stack.compiled = enabled


def _stacks(network: nn.Module, setting: str, enabled: bool) -> list[BlockStack]:
    stacks = [module for module in network.modules() if isinstance(module, BlockStack)]
    if enabled and not stacks:
        raise ConfigError(f"this kind of codec does not know {setting}: leave it out")
    return stacks


def _call(block: nn.Module, features: Tensor, t: int) -> Tensor:
    out: Tensor = block(features, t)
    return out


@functools.cache
def _compiled_call() -> Callable[[nn.Module, Tensor, int], Tensor]:
    """One for all: blocks of equal shapes share what was compiled, and a copy of a codec computes with its own weights.

    Not the whole network: that took ten times as long to compile, and was no faster. Every shape is compiled for
    itself: programs for any shape took minutes, and which of the two a shape meets would depend on those before it, so
    that a resumed run would not be the same run. Beyond eight shapes torch says so, and leaves the rest as they are.
    """
    return torch.compile(_call, dynamic=False)
