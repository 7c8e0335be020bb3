"""Attention in the transformer codec: within a latent frame, and back over a bounded number of them.

Positions are relative (rotary, Su et al. 2021, arXiv 2104.09864): only differences of them matter, so the millionth
latent frame of a stream is treated as the tenth was. Queries and keys are normalised (Henry et al. 2020, arXiv
2010.04245), so that no product of them outgrows bf16. Features here are ``[B*t,h,w,C]``: every layer is linear.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokvid_tokenizers.layers.past import Past

# Of one call: the grids of CUDA's kernels for attention hold no more sequences, and fail (pytorch issue 142228). Every
# cell of a batch is a sequence over time.
MOST_SEQUENCES = 65_535


class SpatialAttention(nn.Module):
    """Every cell looks at those of its own latent frame: all of them, or with a ``window`` those of its own square.

    The squares of ``window`` by ``window`` cells are counted from the top left corner; where ``shifted`` the first
    ones are half as high and wide, so that blocks by turns join what the others part. Whether two cells see each other
    depends on their places alone, not on the size of the picture; squares that it cuts hold fewer cells.
    """

    def __init__(self, channels: int, heads: int, window: int | None, *, shifted: bool = False) -> None:
        super().__init__()
        self.attention = _Heads(channels, heads)
        self.window = window
        self.shift = window // 2 if window and shifted else 0

    def forward(self, features: Tensor) -> Tensor:
        """``[B*t,h,w,C]`` -> what is to be added, of the same shape."""
        count, height, width, _ = features.shape
        (top, p, bottom), (left, q, right) = (_cut(side, self.window, self.shift) for side in (height, width))
        parts, mask = self.attention.split(features), None
        if top or bottom or left or right:
            parts = [F.pad(part, (0, 0, 0, 0, left, right, top, bottom)) for part in parts]
            inside = F.pad(features.new_ones(height, width, dtype=torch.bool), (left, right, top, bottom))
            mask = rearrange(inside, "(a p) (b q) -> (a b) 1 1 (p q)", p=p, q=q).repeat(count, 1, 1, 1)
        queries, keys, values = (
            rearrange(part, "n (a p) (b q) heads d -> (n a b) heads (p q) d", p=p, q=q) for part in parts
        )
        rows = torch.arange(p, device=features.device).repeat_interleave(q)
        columns = torch.arange(q, device=features.device).repeat(p)
        seen = attend(rotate(queries, rows, columns), rotate(keys, rows, columns), values, mask)
        a, b = (height + top + bottom) // p, (width + left + right) // q
        whole = rearrange(seen, "(n a b) heads (p q) d -> n (a p) (b q) (heads d)", a=a, b=b, p=p)
        out: Tensor = self.attention.out(whole[:, top : top + height, left : left + width])
        return out


class TemporalAttention(nn.Module):
    """Every cell looks at the same place in its own latent frame and the ``window - 1`` before it."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.attention = _Heads(channels, heads)
        self.window = window

    def forward(self, features: Tensor, t: int, past: Past | None = None) -> Tensor:
        """``[B*t,h,w,C]`` -> what is to be added, of the same shape; latent frame i sees i and before."""
        height, width = features.shape[1:3]
        parts = self.attention.split(features)
        queries, keys, values = (rearrange(part, "(b t) h w heads d -> (b h w) heads t d", t=t) for part in parts)
        if past is not None and self.window > 1:
            before, both = past.last(self), torch.stack([keys, values])
            both = both if before is None else torch.cat([before, both], dim=-2)
            # Not yet turned: where they will then stand, counted from the block that asks, is not known yet.
            past.exchange(self, both[..., 1 - self.window :, :])
            keys, values = both
        # Counted from the oldest that is kept.
        places = torch.arange(keys.shape[-2], device=features.device)
        asking = places[-t:]
        mask = None
        if t > 1:
            distance = asking[:, None] - places
            mask = (distance >= 0) & (distance < self.window)
        seen = attend(rotate(queries, asking), rotate(keys, places), values, mask)
        out: Tensor = self.attention.out(rearrange(seen, "(b h w) heads t d -> (b t) h w (heads d)", h=height, w=width))
        return out


class TransformerBlock(nn.Module):
    """Attention within each latent frame, attention back in time, a feed-forward; each is added and starts at zero."""

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        spatial_window: int | None,
        shifted: bool,
        temporal_window: int,
        expansion: int,
    ) -> None:
        super().__init__()
        self.spatial = SpatialAttention(channels, heads, spatial_window, shifted=shifted)
        self.temporal = TemporalAttention(channels, heads, temporal_window)
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, expansion * channels)
        self.narrow = _from_zero(nn.Linear(expansion * channels, channels))

    def forward(self, features: Tensor, t: int, past: Past | None = None) -> Tensor:
        """``[B*t,h,w,C]`` -> the same shape."""
        features = features + self.spatial(features)
        features = features + self.temporal(features, t, past)
        out: Tensor = features + self.narrow(F.silu(self.widen(self.norm(features))))
        return out


class _Heads(nn.Module):
    """What both attentions share: the normalised input as queries, keys and values of ``heads`` heads; the way out."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.project = nn.Linear(channels, 3 * channels)
        self.query_scale = nn.Parameter(torch.ones(channels // heads))
        self.key_scale = nn.Parameter(torch.ones(channels // heads))
        self.out = _from_zero(nn.Linear(channels, channels))

    def split(self, features: Tensor) -> list[Tensor]:
        """``[B*t,h,w,C]`` -> queries, keys and values ``[B*t,h,w,heads,d]`` of one type."""
        queries, keys, values = self.project(self.norm(features)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return [_normalised(queries, self.query_scale), _normalised(keys, self.key_scale), values]


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot product attention of ``[N,heads,n,d]`` for any N; ``mask`` is true where a query sees a key.

    The mask is ``[N,1,1,n]`` or the same for all, ``[n,n]``.
    """
    parts = [whole.split(MOST_SEQUENCES) for whole in (queries, keys, values)]
    each = mask is not None and mask.ndim == 4
    masks = mask.split(MOST_SEQUENCES) if mask is not None and each else [mask] * len(parts[0])
    seen = [F.scaled_dot_product_attention(q, k, v, attn_mask=m) for q, k, v, m in zip(*parts, masks, strict=True)]
    return seen[0] if len(seen) == 1 else torch.cat(seen)


def rotate(vectors: Tensor, *places: Tensor, base: float = 100.0) -> Tensor:
    """Turn ``[...,n,d]`` by angles that grow with the ``places`` ``[n]``; each of them turns its share of the channels.

    Products of two vectors then depend on the differences of their places alone. d is a multiple of twice their number.
    """
    pairs = vectors.shape[-1] // (2 * len(places))
    rates = base ** (-torch.arange(pairs, device=vectors.device) / pairs)
    angles = torch.cat([place[:, None] * rates for place in places], dim=-1)
    cosine, sine = angles.cos().to(vectors), angles.sin().to(vectors)
    one, other = vectors.chunk(2, dim=-1)
    return torch.cat([one * cosine - other * sine, one * sine + other * cosine], dim=-1)


def _cut(side: int, window: int | None, shift: int) -> tuple[int, int, int]:
    """Cells to add before ``side`` cells, the length of the pieces they are cut into, and cells to add behind."""
    if window is None or side <= (shift or window):
        return 0, side, 0  # all in one piece
    return shift, window, -(side + shift) % window


def _normalised(vectors: Tensor, scale: Tensor) -> Tensor:
    """``[...,d]`` with a mean square of 1, times ``scale`` ``[d]``; of the type of ``vectors``, also under autocast."""
    normalised = F.rms_norm(vectors, scale.shape, scale.to(vectors.dtype), eps=1e-6)
    return normalised.to(vectors.dtype)


def _from_zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
