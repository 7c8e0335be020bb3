"""The order in which the cells of a grid stand in a sequence, and back. Knows no ids and no model."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from tokvid.errors import ShapeError
from tokvid.grid import Grid


class RasterLayout:
    """Time, then rows, then columns, with the K codebooks of a cell side by side."""

    kind = "raster"

    def flatten(self, codes: Tensor) -> Tensor:
        """Codes ``[B,K,t,h,w]`` to a sequence ``[B, t*h*w*K]``."""
        if codes.ndim != 5:
            raise ShapeError(f"expected codes [B,K,t,h,w], got {list(codes.shape)}")
        return rearrange(codes, "b k t h w -> b (t h w k)")

    def unflatten(self, sequence: Tensor, grid: Grid, num_codebooks: int) -> Tensor:
        """The inverse of :meth:`flatten`: a sequence ``[B,S]`` to codes ``[B,K,t,h,w]``."""
        length = grid.cells * num_codebooks
        if sequence.ndim != 2 or sequence.shape[1] != length:
            raise ShapeError(
                f"a {grid} grid of {num_codebooks} codebooks is a sequence [B,{length}], got {list(sequence.shape)}"
            )
        return rearrange(
            sequence, "b (t h w k) -> b k t h w", t=grid.t, h=grid.h, w=grid.w, k=num_codebooks
        ).contiguous()

    def codebooks(self, grid: Grid, num_codebooks: int) -> Tensor:
        """The codebook, int64 ``[S]`` in [0, K), that each position of the sequence speaks of."""
        return torch.arange(num_codebooks).repeat(grid.cells)
