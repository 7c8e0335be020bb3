"""The residual block of the convolutional codec: normalise, look back one latent frame, convolve twice.

Time is mixed by shifting a quarter of the channels one latent frame forward (the online temporal shift of Lin et
al. 2019, arXiv 1811.08383): no arithmetic, and causal by construction. Normalisation is over channels at each
position alone, so no statistic ever runs over time or space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokvid_tokenizers.layers.past import Past
from tokvid_tokenizers.layers.stack import BlockStack

SHIFT_SHARE = 0.25
"""Of the channels; those that show the latent frame before."""


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of ``[N,C,h,w]``, each position alone."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalise; keeps the shape and the channels-last memory."""
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def shift_from_past(features: Tensor, moved: Tensor, before: Tensor | None) -> Tensor:
    """Replace the first channels of ``[B*t,C,h,w]``, ``moved`` ``[B,t,c,h,w]``, by those of the latent frame before.

    That of the first is ``before`` ``[B,1,c,h,w]``, zeros for None.
    """
    before = torch.zeros_like(moved[:, :1]) if before is None else before
    # Joined with the channels last, as they lie in memory: torch would join [N,C,h,w] the other way and turn it twice.
    before, moved, rest = before.movedim(2, -1), moved.movedim(2, -1), features.movedim(1, -1)
    past = torch.cat([before, moved[:, :-1]], dim=1).flatten(0, 1)
    return torch.cat([past, rest[..., past.shape[-1] :]], dim=-1).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """``features + conv(silu(conv(shift(norm(features)))))`` with 3x3 convolutions; the last starts at zero.

    A ``local`` block has 1x1 convolutions and no shift: every position stands alone, in space and in time.
    """

    def __init__(self, channels: int, *, local: bool = False) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.shift_channels = 0 if local else int(channels * SHIFT_SHARE)
        kernel = 1 if local else 3
        self.conv_in = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.conv_out = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, t: int, past: Past | None = None) -> Tensor:
        """``[B*t,C,h,w]`` -> the same shape; frame i sees frames i and before, also of earlier blocks in ``past``."""
        hidden = self.norm(features)
        if self.shift_channels:
            moved = hidden[:, : self.shift_channels].unflatten(0, (-1, t))
            before = None if past is None else past.exchange(self, moved[:, -1:])
            hidden = shift_from_past(hidden, moved, before)
        hidden = F.silu(self.conv_in(hidden))
        out: Tensor = features + self.conv_out(hidden)
        return out


class ResidualStack(BlockStack):
    """``count`` residual blocks in a row."""

    def __init__(self, channels: int, count: int, *, local: bool = False) -> None:
        super().__init__(ResidualBlock(channels, local=local) for _ in range(count))
