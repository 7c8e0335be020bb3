"""Between pixels and features, and between resolutions, without overlap: every patch is its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Patchify(nn.Module):
    """Cuts frames into blocks of ``stride`` frames by ``patch`` by ``patch`` pixels and projects each to features.

    The first frame is a block of its own, filled by repeating it; the last block is filled by repeating the last
    frame. So ``T`` frames give ``1 + ceil((T-1)/stride)`` latent frames, and one image is a clip of one frame.
    """

    def __init__(self, stride: int, patch: int, channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.patch = patch
        self.project = nn.Linear(3 * stride * patch * patch, channels)

    def forward(self, frames: Tensor, *, begins: bool = True) -> Tensor:
        """Frames ``[B,3,T,H,W]`` -> ``[B*t,C,H/patch,W/patch]``; ``begins``: the first is the first of its clip."""
        features: Tensor = self.project(cut_blocks(frames, self.stride, self.patch, begins=begins))
        return features.permute(0, 3, 1, 2)


def cut_blocks(frames: Tensor, stride: int, patch: int, *, begins: bool = True) -> Tensor:
    """The blocks that :class:`Patchify` projects, ``[B*t,H/patch,W/patch,stride*patch*patch*3]``."""
    before = stride - 1 if begins else 0
    first = frames[:, :, :1].expand(-1, -1, before, -1, -1)
    missing = -(frames.shape[2] + before) % stride
    last = frames[:, :, -1:].expand(-1, -1, missing, -1, -1)
    filled = torch.cat([first, frames, last], dim=2)
    return rearrange(filled, "b c (t s) (h p) (w q) -> (b t) h w (s p q c)", s=stride, p=patch, q=patch)


class Unpatchify(nn.Module):
    """The way back: features to blocks of pixels; of the first block of a clip only the last frame is kept."""

    def __init__(self, stride: int, patch: int, channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.patch = patch
        self.project = nn.Linear(channels, 3 * stride * patch * patch)

    def forward(self, features: Tensor, t: int, *, begins: bool = True) -> Tensor:
        """``[B*t,C,h,w]`` -> frames ``[B,3,T,h*patch,w*patch]``: T is t*stride, less stride-1 where a clip begins."""
        patches = self.project(features.permute(0, 2, 3, 1))
        frames: Tensor = rearrange(
            patches,
            "(b t) h w (s p q c) -> b c (t s) (h p) (w q)",
            t=t,
            s=self.stride,
            p=self.patch,
            q=self.patch,
            c=3,
        )
        return frames[:, :, self.stride - 1 :] if begins else frames


class Downsample(nn.Conv2d):
    """Halves height and width; every 2x2 block is projected on its own."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, kernel_size=2, stride=2)


class Upsample(nn.Module):
    """Doubles height and width: a 1x1 convolution to four times the channels, rearranged into 2x2 blocks."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels_in, 4 * channels_out, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """``[N,C,h,w]`` -> ``[N,C',2h,2w]``."""
        return F.pixel_shuffle(self.project(features), 2).contiguous(memory_format=torch.channels_last)
