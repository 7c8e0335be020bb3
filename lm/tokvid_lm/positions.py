"""Where tokens stand: one number each, or time, row and column for the codes of a video.

``1d`` is what every model knows, and what a plain load of a saved model computes. ``3d`` and ``mm`` turn the rotary
embedding of a model by three positions. They replace one module, and a folder that was saved with them names another
``model_type`` (:func:`~tokvid_lm.loading.mark_model_type`), so that a plain load fails and is not silently wrong.

* ``3d``: the channels of a head fall into blocks for time, rows and columns, each with a whole spectrum of its own
  (Cosmos, arXiv 2501.03575); a code stands at the start of its video plus (t, h, w), text at three equal positions.
* ``mm``: the model's own frequencies are dealt out to time, rows and columns by turns, 2:3:3, so that each gets the
  whole spectrum, and positions count frames and pixels (MM-RoPE of Lumos-1, arXiv 2507.08801). Text keeps the model's
  own embedding bit for bit. The pattern is laid over the d/2 frequencies. Laid over the d channels, as it was
  published, it gives the two channels that are turned together different axes unless 32 divides d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokvid.errors import ModelError, ShapeError, did_you_mean

PositionKind = Literal["1d", "3d", "mm"]
POSITIONS: tuple[PositionKind, ...] = get_args(PositionKind)

_PATTERN = (0, 0, 1, 2, 1, 2, 1, 2)  # of eight frequencies two turn by time, three by row, three by column
_LEAST = {"3d": 3, "mm": 4}  # frequencies below which an axis would get none
_PROBE = ((0, 1, 2, 7, 1000),)  # positions at which a model's own embedding is compared with ours


@dataclass(frozen=True, eq=False, kw_only=True)
class Coordinates:
    """Where the tokens of a batch stand.

    ``index`` int64 ``[B,S]``: the place in the document. Of codes (bool ``is_content`` ``[B,S]``) also ``cell`` int64
    ``[B,S,3]``: latent frame, row and column; and ``start`` int64 ``[B,S]``: the index of the first code of the video.
    """

    index: Tensor
    cell: Tensor
    start: Tensor
    is_content: Tensor

    def __post_init__(self) -> None:
        shape = self.index.shape
        if (*shape, 3) != self.cell.shape or shape != self.start.shape or shape != self.is_content.shape:
            raise ShapeError(
                "index, start and is_content are [B,S] and cell is [B,S,3], got"
                f" {', '.join(str(list(x.shape)) for x in (self.index, self.start, self.is_content, self.cell))}"
            )


@dataclass(frozen=True, kw_only=True)
class PositionScheme:
    """One ``kind`` of positions; ``strides`` are the codec's, temporal and spatial, by which ``mm`` counts."""

    kind: PositionKind = "1d"
    strides: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if self.kind not in POSITIONS:
            raise ModelError(f"unknown positions {self.kind!r}: {did_you_mean(str(self.kind), POSITIONS)}")
        if min(self.strides) < 1:
            raise ModelError(f"strides are positive, got {self.strides}")

    def of(self, place: Coordinates) -> Tensor:
        """The ``position_ids`` of a model: int64 ``[B,S]``, or ``[3,B,S]`` for time, row and column."""
        if self.kind == "1d":
            return place.index
        temporal, spatial = self.strides if self.kind == "mm" else (1, 1)
        codes = place.start[..., None] + place.cell * place.cell.new_tensor([temporal, spatial, spatial])
        return torch.where(place.is_content[..., None], codes, place.index[..., None]).movedim(-1, 0)

    def install(self, model: PreTrainedModel) -> None:
        """Make the rotary embedding of ``model`` take these positions; nothing for ``1d``.

        Raises :class:`ModelError` for a model whose rotary embedding is not one module that turns the two halves of a
        head against each other by fixed frequencies.
        """
        rotary = getattr(model.base_model, "rotary_emb", None)
        if isinstance(rotary, RotaryByAxis):
            if rotary.kind != self.kind:
                raise ModelError(f"this model has positions {rotary.kind!r} already: load it anew for {self.kind!r}")
        elif self.kind != "1d":
            model.base_model.rotary_emb = RotaryByAxis(_checked(model, rotary, self.kind), self.kind)


def replace_rotary(model: PreTrainedModel, kind: PositionKind, strides: tuple[int, int]) -> PositionScheme:
    """Give ``model`` positions of a ``kind``; returns what computes their ids, for a codec of these ``strides``."""
    scheme = PositionScheme(kind=kind, strides=strides)
    scheme.install(model)
    return scheme


class RotaryByAxis(nn.Module):
    """A model's rotary embedding, turned by time, row and column.

    It has no buffers: frequencies are read from the wrapped module at every call, which transformers restores after
    loading, so that nothing here can hold memory that was never written.
    """

    def __init__(self, rotary: nn.Module, kind: PositionKind) -> None:
        super().__init__()
        self.rotary = rotary
        self.kind = kind

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[B,S,d]`` in the type of the features ``x``, for ids ``[3,B,S]``; of ids ``[B,S]`` all
        three are equal, as of text."""
        if position_ids.ndim == 2:
            if self.kind == "mm":
                own: tuple[Tensor, Tensor] = self.rotary(x, position_ids)
                return own
            position_ids = position_ids.expand(3, -1, -1)
        inv_freq: Tensor = self.rotary.inv_freq  # type: ignore[assignment]
        frequencies, axis = axes_of(self.kind, inv_freq.to(device=x.device, dtype=torch.float32))
        with torch.autocast(x.device.type, enabled=False):
            angles = position_ids.to(x.device).movedim(0, -1)[..., axis].float() * frequencies
            angles = torch.cat((angles, angles), dim=-1)
            scale: float = self.rotary.attention_scaling  # type: ignore[assignment]
            return (angles.cos() * scale).to(x.dtype), (angles.sin() * scale).to(x.dtype)


def axes_of(kind: PositionKind, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """By which frequency each pair of channels turns, ``[d/2]``, and by which axis: 0 time, 1 row, 2 column.

    ``inv_freq`` ``[d/2]`` are the model's.
    """
    count = len(inv_freq)
    if kind == "mm":
        axis = torch.arange(count, device=inv_freq.device) % len(_PATTERN)
        return inv_freq, axis.new_tensor(_PATTERN)[axis]
    if kind == "1d":
        return inv_freq, torch.zeros(count, dtype=torch.int64, device=inv_freq.device)
    # Of d channels d // 6 * 2 are for columns, as many for rows, the rest for time; a pair is two of them.
    third = count // 3
    sizes = [count - 2 * third, third, third]
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes)).to(inv_freq.device)
    return torch.cat([_spread(inv_freq, size) for size in sizes]), axis


def _spread(inv_freq: Tensor, count: int) -> Tensor:
    """``count`` frequencies over the whole spectrum of the model: theta^(-i/count) where the model has theta^(-i/n)."""
    # Between two of the model's they are taken on the logarithmic scale, so that a spectrum that was bent for long
    # contexts (llama3, yarn) stays bent.
    places = torch.arange(count, device=inv_freq.device) * (len(inv_freq) / count)
    low = places.floor().long()
    high = (low + 1).clamp(max=len(inv_freq) - 1)
    logarithms = inv_freq.log()
    return torch.lerp(logarithms[low], logarithms[high], places - low).exp()


def _checked(model: PreTrainedModel, rotary: object, kind: PositionKind) -> nn.Module:
    """``rotary``, if it computes what ours does; tried, since the names of modules and settings promise nothing."""
    name = type(model).__name__
    inv_freq = getattr(rotary, "inv_freq", None)
    if not isinstance(rotary, nn.Module) or not isinstance(inv_freq, Tensor):
        raise ModelError(f"{name} has no rotary embedding in one module, which positions {kind!r} need: use 1d")
    rope = str(getattr(rotary, "rope_type", "default"))
    if "dynamic" in rope or rope == "longrope":
        raise ModelError(f"{name} has frequencies that change with the length ({rope}): use positions 1d")
    if len(inv_freq) < _LEAST[kind]:
        raise ModelError(
            f"{name} turns {2 * len(inv_freq)} channels of a head, too few for positions {kind!r}, which need"
            f" {2 * _LEAST[kind]}: use 1d"
        )
    features = torch.zeros(1, 1, dtype=torch.float32, device=inv_freq.device)
    ids = torch.tensor(_PROBE, device=inv_freq.device)
    expected = rotary(features, ids)
    found = RotaryByAxis(rotary, "mm")(features, ids.expand(3, -1, -1))
    if not all(mine.shape == its.shape and torch.equal(mine, its) for mine, its in zip(found, expected, strict=True)):
        raise ModelError(f"{name} computes its rotary embedding in another way than Llama: use positions 1d")
    return rotary
