"""Large pictures in tiles: a network computes a few cells at a time with a halo around them, and only they are kept.

Where the halo is as wide as the network sees, what is kept is what whole pictures give, up to the rounding of sums: the
zeros that convolutions put around a picture stay at its borders, and those around a tile are too far away to be seen.
Tiles are cut on the latent grid. What this file knows of networks is how far each kind sees over space.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import assert_never

from torch import Tensor

from tokvid.errors import ModelError
from tokvid_tokenizers.codec_config import (
    AnyCodecConfig,
    CodecConfig,
    FactorisedCodecConfig,
    TransformerCodecConfig,
    VidTokConfig,
)
from tokvid_tokenizers.layers.past import Past

Step = Callable[[Tensor, Past], Tensor]
"""What a network makes of a clip ``[B,C,T,h,w]`` or a block of one, in the middle of which the past stands."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Along one side, in cells: ``start`` to ``stop`` are computed, of which ``first`` to ``last`` are kept."""

    first: int
    last: int
    start: int
    stop: int

    def computed(self, cell: int) -> slice:
        """Where a picture whose cells are ``cell`` wide holds what is computed."""
        return slice(self.start * cell, self.stop * cell)

    def kept(self, cell: int) -> slice:
        """Where a picture holds what is kept."""
        return slice(self.first * cell, self.last * cell)

    def kept_of_computed(self, cell: int) -> slice:
        """Where what is computed holds what is kept."""
        return slice((self.first - self.start) * cell, (self.last - self.start) * cell)


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a network runs over pictures: in tiles of ``tile`` (h, w) cells and ``halo`` cells around each.

    With a ``tile`` of None all of a picture is one tile. A cell is ``cell_in`` wide in what goes in and ``cell_out`` in
    what comes out: pixels or cells.
    """

    tile: tuple[int, int] | None
    halo: int
    exact: bool
    """Whether the result is that of whole pictures."""
    cell_in: int
    cell_out: int

    def tiles(self, clip: Tensor) -> list[tuple[Span, Span]]:
        """Rows and columns of every tile of ``clip`` ``[B,C,T,h*cell_in,w*cell_in]``."""
        height, width = (side // self.cell_in for side in clip.shape[-2:])
        tile = self.tile or (height, width)
        return list(itertools.product(self._spans(height, tile[0]), self._spans(width, tile[1])))

    def run(self, step: Step, clip: Tensor, pasts: Iterable[Past]) -> Tensor:
        """What ``step`` makes of ``clip``, tile by tile; each tile has a past of its own."""
        tiles, made = self.tiles(clip), None
        height, width = (side // self.cell_in * self.cell_out for side in clip.shape[-2:])
        for (rows, columns), past in zip(tiles, pasts, strict=True):
            part = step(clip[..., rows.computed(self.cell_in), columns.computed(self.cell_in)], past)
            if len(tiles) == 1:
                return part
            if made is None:
                made = part.new_empty(*part.shape[:3], height, width)
            kept = part[..., rows.kept_of_computed(self.cell_out), columns.kept_of_computed(self.cell_out)]
            made[..., rows.kept(self.cell_out), columns.kept(self.cell_out)] = kept
        assert made is not None
        return made

    def _spans(self, side: int, tile: int) -> list[Span]:
        ends = [(first, min(first + tile, side)) for first in range(0, side, tile)]
        return [
            Span(first=first, last=last, start=max(0, first - self.halo), stop=min(last + self.halo, side))
            for first, last in ends
        ]


def encoder_tiling(config: AnyCodecConfig, tile: tuple[int, int] | None, halo: int | None = None) -> Tiling:
    """Tiles of ``tile`` (H, W) pixels for the encoder, ``halo`` cells around each; None: as many as it sees.

    Raises :class:`ModelError` for tiles off the stride, and for those smaller than their halo.
    """
    return _tiling(config, tile, halo, encoder_reach(config), cell_in=config.spatial_stride, cell_out=1)


def decoder_tiling(config: AnyCodecConfig, tile: tuple[int, int] | None, halo: int | None = None) -> Tiling:
    """The same for the decoder, ``tile`` in pixels too."""
    return _tiling(config, tile, halo, decoder_reach(config), cell_in=1, cell_out=config.spatial_stride)


def encoder_reach(config: AnyCodecConfig) -> int | None:
    """Cells beyond a tile's own that its codes depend on, in each direction; None: all of the picture."""
    match config:
        case CodecConfig(local_encoder=True):
            return 0
        case CodecConfig() | FactorisedCodecConfig():
            return _reach_of_convolutions(config.encoder_blocks, 0)
        case TransformerCodecConfig():
            return _reach_of_windows(config.spatial_window, config.encoder_blocks)
        case VidTokConfig():
            return None
        case _:
            assert_never(config)


def decoder_reach(config: AnyCodecConfig) -> int | None:
    """Cells beyond a tile's own that its pixels depend on, in each direction; None: all of the picture."""
    match config:
        case CodecConfig() | FactorisedCodecConfig():
            return _reach_of_convolutions(config.decoder_blocks, 1)
        case TransformerCodecConfig():
            return _reach_of_windows(config.spatial_window, config.decoder_blocks)
        case VidTokConfig():
            return None
        case _:
            assert_never(config)


def cells_apart(config: AnyCodecConfig) -> int:
    """Tiles begin at multiples of this many cells: there the windows of attention lie as in the whole picture."""
    return config.spatial_window or 1 if isinstance(config, TransformerCodecConfig) else 1


def _reach_of_convolutions(blocks: tuple[int, ...], stem: int) -> int:
    """Of blocks of two 3x3 convolutions at every resolution, finest first, and a stem that sees ``stem`` cells."""
    reach = 0
    for finer, count in enumerate(blocks):
        reach = (-(-reach // 2) if finer else 0) + 2 * count
    return reach + stem


def _reach_of_windows(window: int | None, blocks: int) -> int | None:
    """Of attention in squares that move by half in every second block, for tiles that begin where squares do.

    Two blocks see the half square beyond that the second one joins, and the other half of it in the first.
    """
    if window is None:
        return None if blocks else 0
    return window * (blocks // 2)


def _tiling(
    config: AnyCodecConfig,
    tile: tuple[int, int] | None,
    halo: int | None,
    reach: int | None,
    *,
    cell_in: int,
    cell_out: int,
) -> Tiling:
    if tile is None:
        if halo is not None:
            raise ModelError(f"a halo of {halo} cells is that of tiles: give their size too")
        return Tiling(tile=None, halo=0, exact=True, cell_in=cell_in, cell_out=cell_out)
    stride, apart = config.spatial_stride, cells_apart(config)
    unit = stride * apart
    height, width = tile
    if min(tile) < 1 or height % unit or width % unit:
        windows = f" ({apart} cells, a window of its attention)" if apart > 1 else ""
        raise ModelError(
            f"height and width of this codec's tiles must be positive multiples of {unit}{windows}, got"
            f" {height}x{width}"
        )
    if halo is None:
        if reach is None:
            raise ModelError(
                "this codec's attention sees whole pictures, so no tiles are exact: give a"
                " halo in cells to have them all the same"
            )
        halo = reach
    if halo < 0 or halo % apart:
        raise ModelError(f"a halo must be 0 or a positive multiple of {apart} cells, got {halo}")
    if min(tile) < halo * stride:
        least = -(-halo // apart) * unit
        raise ModelError(
            f"tiles of {height}x{width} are smaller than their halo of {halo * stride} pixels, so that most of the"
            f" work would be done over and over: make them {least}x{least} or more"
        )
    exact = reach is not None and halo >= reach
    return Tiling(tile=(height // stride, width // stride), halo=halo, exact=exact, cell_in=cell_in, cell_out=cell_out)
