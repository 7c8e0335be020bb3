"""The linear path beside a network: each block of pixels straight to its latent, and each latent straight to its block.

It sees nothing but the block, so it changes neither what a codec can stream nor the halo of a tile. Started on the
principal components of some clips it is the best linear codec of so few channels, which the networks then improve on;
without it the first hundreds of steps go into finding one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokvid_tokenizers.layers.clip_shape import fold_time, unfold_time
from tokvid_tokenizers.layers.resample import Patchify, Unpatchify

_LEAST_DEVIATION = 1e-4
"""Of a component, in units of pixels: below it there is nothing to whiten."""


class LinearEncoder(nn.Module):
    """Frames ``[B,3,T,H,W]`` -> latents ``[B,D,t,h,w]`` by one linear map of each block of pixels."""

    def __init__(self, stride: int, patch: int, latent_dim: int) -> None:
        super().__init__()
        self.stem = Patchify(stride, patch, latent_dim)

    def forward(self, frames: Tensor, *, begins: bool) -> Tensor:
        """The latents of whole groups of frames; where a clip ``begins`` the first frame is alone."""
        features = self.stem(frames, begins=begins)
        return unfold_time(features, len(features) // len(frames))

    def start(self, blocks: Tensor, count: int) -> None:
        """Start on the ``count`` first principal components of ``blocks`` ``[N,P]``, each of deviation 1.

        What channels there are beyond them start at zero.
        """
        mean = blocks.mean(dim=0)
        variances, components = torch.linalg.eigh(torch.cov(blocks.T, correction=0))
        # In rising order.
        chosen = components[:, -count:].flip(1) / variances[-count:].flip(0).sqrt().clamp_min(_LEAST_DEVIATION)
        _assign(self.stem.project, chosen.T, -mean @ chosen)


class LinearDecoder(nn.Module):
    """Latents ``[B,D,t,h,w]`` -> frames ``[B,3,T,H,W]`` by one linear map of each latent."""

    def __init__(self, stride: int, patch: int, latent_dim: int) -> None:
        super().__init__()
        self.head = Unpatchify(stride, patch, latent_dim)

    def forward(self, latents: Tensor, *, begins: bool) -> Tensor:
        """The frames of the latents; where a clip ``begins`` the first latent frame makes one frame."""
        frames: Tensor = self.head(fold_time(latents), latents.shape[2], begins=begins)
        return frames

    def start(self, vectors: Tensor, blocks: Tensor) -> None:
        """Start on the least squares from ``vectors`` ``[N,D]`` to the ``blocks`` ``[N,P]`` that they stand for."""
        mean = vectors.mean(dim=0)
        solution = torch.linalg.lstsq(vectors - mean, blocks - blocks.mean(dim=0)).solution
        _assign(self.head.project, solution.T, blocks.mean(dim=0) - mean @ solution)


def _assign(project: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Put ``weight`` and ``bias`` into the first rows of a layer, zeros into the others."""
    rows = len(bias)
    project.weight[rows:], project.bias[rows:] = 0, 0
    project.weight[:rows], project.bias[:rows] = weight, bias
