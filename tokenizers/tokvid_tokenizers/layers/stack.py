"""Blocks in a row, and what training can do to all of them: keep less and compute twice.

It knows nothing of what a block computes, only how it is called.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokvid_tokenizers.layers.past import Past


class BlockStack(nn.Module):
    """``blocks`` in a row, each called as ``block(features, t, past)`` and keeping the shape.

    With ``recompute`` the backward pass computes each block again instead of keeping what happened in it (gradient
    checkpointing, Chen et al. 2016, arXiv 1604.06174): the same numbers in less memory and about a third more time.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.recompute = False

    def forward(self, features: Tensor, t: int, past: Past | None = None) -> Tensor:
        """Features of t latent frames -> the same shape."""
        # Not with a past: what a block leaves there it would leave twice.
        recompute = self.recompute and past is None and torch.is_grad_enabled()
        for block in self.blocks:
            if recompute:
                # No block draws at random, so there is no generator to wind back.
                features = checkpoint(block, features, t, use_reentrant=False, preserve_rng_state=False)
            else:
                features = block(features, t, past)
        return features


def recompute_blocks(network: nn.Module, enabled: bool = True) -> None:
    """Switch the gradient checkpointing of every stack in ``network``; nothing of it is saved with the weights."""
    for module in network.modules():
        if isinstance(module, BlockStack):
            module.recompute = enabled
