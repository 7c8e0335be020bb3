"""Where tokens stand: one number each, or time, row and column for the codes of a video.

``1d`` is what every model knows and what a plain load of a saved model computes. ``3d`` and ``mm`` turn the rotary
embedding of a model by three positions; they replace one module, and a folder that was saved with them says another
``model_type``, so that a plain load fails loudly instead of being silently wrong.

* ``3d``: the channels of a head fall into blocks for time, rows and columns, each with a spectrum of its own (Cosmos,
  Agarwal et al. 2025, arXiv 2501.03575); text has three equal positions.
* ``mm``: the model's own frequencies are dealt out to time, rows and columns by turns, 2:3:3, so that each gets the
  whole spectrum, and positions count frames and pixels (MM-RoPE of Lumos-1, Yuan et al. 2025, arXiv 2507.08801). Text
  keeps the model's own embedding bit for bit. The pattern is laid over pairs of channels, which makes it right for
  every head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokvid.errors import ModelError, did_you_mean

PositionKind = Literal["1d", "3d", "mm"]
_PATTERN = (0, 0, 1, 2, 1, 2, 1, 2)  # time, time, then rows and columns by turns: 2:3:3


@dataclass(frozen=True, eq=False, kw_only=True)
class Coordinates:
    """Of each token ``[B,S]``: its ``index`` in the document; of codes (``is_content``) the ``cell`` ``[B,S,3]`` (t,
    h, w) and ``start``, the index of the first code of their video."""

    index: Tensor
    cell: Tensor
    start: Tensor
    is_content: Tensor


@dataclass(frozen=True, kw_only=True)
class PositionScheme:
    """One ``kind`` of positions; ``strides`` are the codec's, temporal and spatial, by which ``mm`` counts."""

    kind: PositionKind = "1d"
    strides: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        kinds = get_args(PositionKind)
        if self.kind not in kinds:
            raise ModelError(f"unknown positions {self.kind!r}: {did_you_mean(str(self.kind), kinds)}")

    def of(self, place: Coordinates) -> Tensor:
        """What the model takes: ``[B,S]``, or ``[3,B,S]`` for time, row and column."""
        if self.kind == "1d":
            return place.index
        temporal, spatial = self.strides if self.kind == "mm" else (1, 1)
        scaled = place.cell * torch.tensor([temporal, spatial, spatial], device=place.cell.device)
        codes = place.start[..., None] + scaled
        return torch.where(place.is_content[..., None], codes, place.index[..., None]).movedim(-1, 0)

    def install(self, model: PreTrainedModel) -> None:
        """Make the rotary embedding of ``model`` take these positions; nothing for ``1d``.

        Raises :class:`ModelError` for a model that does not compute its rotary embedding in one module.
        """
        if self.kind == "1d":
            return
        rotary = getattr(model.base_model, "rotary_emb", None)
        if not isinstance(rotary, nn.Module) or not isinstance(getattr(rotary, "inv_freq", None), Tensor):
            raise ModelError(
                f"{type(model).__name__} has no rotary embedding in one module, which positions {self.kind!r} replace:"
                " use positions 1d"
            )
        if not isinstance(rotary, RotaryByAxis):
            model.base_model.rotary_emb = RotaryByAxis(rotary, self.kind)


class RotaryByAxis(nn.Module):
    """A model's rotary embedding, turned by time, row and column.

    The wrapped module answers for positions ``[B,S]``. For ``[3,B,S]`` each pair of channels takes one of the three.
    """

    def __init__(self, rotary: nn.Module, kind: PositionKind) -> None:
        super().__init__()
        self.rotary = rotary
        self.kind = kind

    def forward(self, features: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[B,S,d]`` in the type of ``features``."""
        if position_ids.ndim == 2:
            if self.kind == "mm":
                embedded: tuple[Tensor, Tensor] = self.rotary(features, position_ids)
                return embedded
            position_ids = position_ids.expand(3, -1, -1)
        own: Tensor = self.rotary.inv_freq  # type: ignore[assignment]
        frequencies, axis = axes_of(self.kind, own)
        positions = position_ids.to(frequencies.device).movedim(0, -1)[..., axis]
        with torch.autocast(features.device.type, enabled=False):
            angles = positions.float() * frequencies.float()
            angles = torch.cat([angles, angles], dim=-1)
            scale = float(getattr(self.rotary, "attention_scaling", 1.0))
            return (angles.cos() * scale).to(features.dtype), (angles.sin() * scale).to(features.dtype)


def axes_of(kind: PositionKind, own: Tensor) -> tuple[Tensor, Tensor]:
    """The frequency of each pair of channels ``[d/2]``, and its axis: 0 time, 1 row, 2 column. ``own`` are the
    model's."""
    count = len(own)
    if kind == "mm":
        return own, torch.tensor([_PATTERN[pair % len(_PATTERN)] for pair in range(count)], device=own.device)
    # Rows and columns take a third of the pairs each, time the rest; every block runs through the whole spectrum.
    third = count // 3
    sizes = (count - 2 * third, third, third)
    parts = [_stretched(own, size) for size in sizes]
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes)).to(own.device)
    return torch.cat(parts), axis


def _stretched(own: Tensor, count: int) -> Tensor:
    """``count`` frequencies from the highest of ``own`` down as far, evenly on a logarithmic scale, as theirs go."""
    if not count:
        return own[:0]
    step = len(own) / count
    logarithms = own.float().log()
    places = torch.arange(count, device=own.device) * step
    low = places.floor().long()
    high = (low + 1).clamp(max=len(own) - 1)
    return torch.lerp(logarithms[low], logarithms[high], places - low).exp()
