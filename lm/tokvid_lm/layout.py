"""The order in which the cells of a grid stand in a sequence, and back. Knows no ids and no model.

Latent frames always follow one another; a layout says in which order the ids of one frame stand. A new layout is a
class with a ``kind`` and one method, and its name in :data:`LAYOUTS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from tokvid.errors import ModelError, ShapeError, did_you_mean
from tokvid.grid import Grid


class Layout(ABC):
    """An order of the ``h*w*P`` ids of a latent frame, numbered ``(row*w + column)*P + slot``."""

    kind: ClassVar[str]

    @abstractmethod
    def frame_order(self, height: int, width: int, slots: int) -> Tensor:
        """A permutation, int64 ``[h*w*P]``: place i of a frame holds the id of that number."""

    def flatten(self, ids: Tensor) -> Tensor:
        """Ids (or codes, or anything) ``[B,P,t,h,w]`` to a sequence ``[B, t*h*w*P]``."""
        if ids.ndim != 5:
            raise ShapeError(f"expected ids [B,P,t,h,w], got {list(ids.shape)}")
        rows, slots, frames, height, width = ids.shape
        order = self.frame_order(height, width, slots).to(ids.device)
        return ids.permute(0, 2, 3, 4, 1).reshape(rows, frames, -1)[:, :, order].flatten(1)

    def unflatten(self, sequence: Tensor, grid: Grid, slots: int) -> Tensor:
        """The inverse of :meth:`flatten`: a sequence ``[B,S]`` to ids ``[B,P,t,h,w]``."""
        length = grid.cells * slots
        if sequence.ndim != 2 or sequence.shape[1] != length:
            raise ShapeError(f"a {grid} grid of {slots} slots is a sequence [B,{length}], got {list(sequence.shape)}")
        order = self.frame_order(grid.h, grid.w, slots).to(sequence.device)
        frames: Tensor = sequence.unflatten(1, (grid.t, -1))[:, :, order.argsort()]
        ids: Tensor = frames.unflatten(2, (grid.h, grid.w, slots)).permute(0, 4, 1, 2, 3).contiguous()
        return ids

    def slots(self, grid: Grid, slots: int) -> Tensor:
        """The slot, int64 ``[S]`` in [0, P), that each place of the sequence speaks of."""
        return (self.frame_order(grid.h, grid.w, slots) % slots).repeat(grid.t)

    @lru_cache(maxsize=64)  # noqa: B019 - of a handful of layouts
    def cells(self, grid: Grid, slots: int) -> Tensor:
        """The cell (t, h, w), int64 ``[S,3]``, that each place of the sequence speaks of; shared, not to write into."""
        cell = self.frame_order(grid.h, grid.w, slots) // slots
        frame = torch.stack([cell // grid.w, cell % grid.w], dim=1).repeat(grid.t, 1)
        time = torch.arange(grid.t).repeat_interleave(len(cell))
        return torch.cat([time[:, None], frame], dim=1)


class RasterLayout(Layout):
    """Rows, then columns, with the slots of a cell side by side."""

    kind = "raster"

    def frame_order(self, height: int, width: int, slots: int) -> Tensor:
        """As they are numbered."""
        return torch.arange(height * width * slots)


class FrameLayout(Layout):
    """The whole frame in slot 0, then the whole frame in slot 1: of a residual codec the coarse picture first."""

    kind = "frame"

    def frame_order(self, height: int, width: int, slots: int) -> Tensor:
        """Slots, then rows, then columns."""
        order: Tensor = torch.arange(height * width * slots).unflatten(0, (-1, slots)).T.flatten()
        return order


class RandomLayout(Layout):
    """Cells in an order that was drawn once, the same for every frame and every clip; slots side by side."""

    kind = "random"

    def frame_order(self, height: int, width: int, slots: int) -> Tensor:
        """A permutation of the cells that depends on the size of the frame alone."""
        cells = torch.from_numpy(np.random.default_rng([height, width]).permutation(height * width))
        return (cells[:, None] * slots + torch.arange(slots)).flatten()


LAYOUTS: dict[str, type[Layout]] = {layout.kind: layout for layout in (RasterLayout, FrameLayout, RandomLayout)}


def build_layout(kind: str) -> Layout:
    """The layout named ``kind``; raises :class:`ModelError` for an unknown name."""
    if kind not in LAYOUTS:
        raise ModelError(f"unknown layout {kind!r}: {did_you_mean(kind, LAYOUTS)}")
    return LAYOUTS[kind]()
