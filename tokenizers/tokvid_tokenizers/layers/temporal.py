"""Time in the factorised codec: causal convolutions over frames alone, and halving and doubling their number.

Features are ``[B*t,C,h,w]`` as everywhere; what a layer looks back at across two blocks of a clip it keeps in the
:class:`Past`. Before a clip there is its first frame, over and over. A convolution over time is a 2-D one over frames
and positions, ``[B,C,t,h*w]`` in channels-last memory: nothing is moved for it, and on one core of a processor it ran
at 99 to 109 GMAC/s in fp32 where conv3d with a kernel of (3, 1, 1) ran at 13 to 47.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokvid_tokenizers.layers.past import Past
from tokvid_tokenizers.layers.residual import ChannelNorm


class TemporalConv(nn.Module):
    """A convolution over ``kernel`` frames at every position: this one and those before."""

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.kernel = kernel
        self.project = nn.Conv2d(channels, channels, kernel_size=(kernel, 1))

    def forward(self, features: Tensor, t: int, past: Past | None = None) -> Tensor:
        """``[B*t,C,h,w]`` -> the same shape."""
        return _over_time(self.project, with_frames_before(self, features, t, self.kernel - 1, past))


class TemporalDownsample(nn.Module):
    """Halves the number of frames: the first stays alone, then every two become one, with a look at the one before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, channels, kernel_size=(3, 1), stride=(2, 1))

    def forward(self, features: Tensor, t: int, past: Past | None = None, *, begins: bool) -> Tensor:
        """``[B*t,C,h,w]`` -> ``[B*t',C,h,w]``: t' is (t+1)/2 where a clip begins (t is odd), else t/2 (it is even)."""
        clip = with_frames_before(self, features, t, 1, past)
        if begins:
            clip = torch.cat([clip[:, :1], clip], dim=1)  # the group of the first frame is that frame alone
        return _over_time(self.project, clip)


class TemporalUpsample(nn.Module):
    """Doubles the number of frames; of the two that the first of a clip becomes, the second is kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, 2 * channels, kernel_size=1)

    def forward(self, features: Tensor, t: int, *, begins: bool) -> Tensor:
        """``[B*t,C,h,w]`` -> ``[B*t',C,h,w]``: t' is 2t-1 where a clip begins, else 2t."""
        pairs = _unfolded(self.project(features), t).unflatten(-1, (2, -1)).movedim(-2, 2)
        doubled = pairs.flatten(1, 2)
        return _folded(doubled[:, 1:] if begins else doubled)


class TemporalBlock(nn.Module):
    """``features + conv(silu(norm(features)))`` over time; it starts as nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv = TemporalConv(channels)
        nn.init.zeros_(self.conv.project.weight)
        nn.init.zeros_(self.conv.project.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, t: int, past: Past | None = None) -> Tensor:
        """``[B*t,C,h,w]`` -> the same shape."""
        out: Tensor = features + self.conv(F.silu(self.norm(features)), t, past)
        return out


def with_frames_before(layer: nn.Module, features: Tensor, t: int, count: int, past: Past | None) -> Tensor:
    """``[B*t,C,h,w]`` -> ``[B,count+t,h,w,C]``: the last ``count`` frames of the blocks before, and this block."""
    clip = _unfolded(features, t)
    before = clip[:, :1].expand(-1, count, -1, -1, -1)
    if past is None:
        return torch.cat([before, clip], dim=1)
    # What is kept reaches over blocks shorter than itself, hence through what was kept before.
    kept = past.last(layer)
    joined = torch.cat([before if kept is None else kept, clip], dim=1)
    past.exchange(layer, joined[:, joined.shape[1] - count :])
    return joined


def _over_time(conv: nn.Conv2d, clip: Tensor) -> Tensor:
    """A convolution over the frames of ``[B,T,h,w,C]`` -> ``[B*t,C',h,w]``."""
    convolved: Tensor = conv(clip.flatten(2, 3).permute(0, 3, 1, 2))
    return _folded(convolved.permute(0, 2, 3, 1).unflatten(2, clip.shape[2:4]))


def _unfolded(features: Tensor, t: int) -> Tensor:
    """``[B*t,C,h,w]`` -> ``[B,t,h,w,C]``, which in channels-last memory moves nothing."""
    unfolded: Tensor = features.permute(0, 2, 3, 1).unflatten(0, (-1, t))
    return unfolded


def _folded(clip: Tensor) -> Tensor:
    """``[B,t,h,w,C]`` -> ``[B*t,C,h,w]`` in channels-last memory; the inverse of :func:`_unfolded`."""
    return clip.flatten(0, 1).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
