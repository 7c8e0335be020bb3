"""PatchGAN discriminators (Isola et al. 2016, arXiv 1611.07004), of frames or of clips: a verdict for every patch.

Features are normalised over channels at each position, as in the codecs: a verdict depends on its own patch alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from tokvid.config_checks import at_least
from tokvid_tokenizers.layers.clip_shape import fold_time

_KERNEL = 4
_SLOPE = 0.2


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """``sees``: "frames" (2-D) judges each alone, "clips" (3-D) also how they move.

    Each of ``layers`` halves height and width (3-D: also the first half of the layers, time); ``channels`` double from
    one to the next up to eight times the first.
    """

    sees: Literal["frames", "clips"] = "frames"
    channels: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        at_least(self, 1, "channels", "layers")


class _Layer(nn.Module):
    def __init__(
        self, channels_in: int, channels_out: int, *, three: bool, strides_time: bool, normalises: bool
    ) -> None:
        super().__init__()
        pad = _KERNEL // 2 - 1
        if three:
            stride = (2 if strides_time else 1, 2, 2)
            self.conv: nn.Conv2d | nn.Conv3d = nn.Conv3d(
                channels_in, channels_out, (3, _KERNEL, _KERNEL), stride, (1, pad, pad)
            )
        else:
            self.conv = nn.Conv2d(channels_in, channels_out, _KERNEL, 2, pad)
        self.norm = nn.LayerNorm(channels_out) if normalises else None

    def forward(self, features: Tensor) -> Tensor:
        hidden = _convolved(self.conv, features)
        if self.norm is not None:
            hidden = self.norm(hidden.movedim(1, -1)).movedim(-1, 1)
        return F.leaky_relu(hidden, _SLOPE)


class Discriminator(nn.Module):
    """Frames ``[B,3,T,H,W]`` -> logits ``[N,patches]``, one row a frame (2-D) or a clip (3-D); positive says real."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        three = config.sees == "clips"
        widths = [3, *(config.channels * min(2**i, 8) for i in range(config.layers))]
        self.layers = nn.Sequential(
            *(
                _Layer(widths[i], widths[i + 1], three=three, strides_time=2 * i < config.layers, normalises=i > 0)
                for i in range(config.layers)
            )
        )
        self.head = (nn.Conv3d if three else nn.Conv2d)(widths[-1], 1, 3, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        """Judge frames ``[B,3,T,H,W]`` of at least ``2**layers`` pixels a side."""
        pictures = frames if self.config.sees == "clips" else fold_time(frames)
        return _convolved(self.head, self.layers(pictures)).flatten(1)


def _convolved(conv: nn.Conv2d | nn.Conv3d, features: Tensor) -> Tensor:
    """What ``conv`` makes of features ``[N,C,h,w]``, or ``[B,C,t,h,w]``.

    Of a kernel of three over time a single picture meets the middle alone. That is a third of the arithmetic, and on
    processors with AMX oneDNN's bfloat16 gave NaN for the whole (torch 2.14, three channels).
    """
    if isinstance(conv, nn.Conv3d) and features.shape[2] == 1:
        _, *stride = conv.stride
        _, *padding = (int(side) for side in conv.padding)
        picture = F.conv2d(features.squeeze(2), conv.weight[:, :, 1], conv.bias, stride, padding)
        return picture.unsqueeze(2)
    hidden: Tensor = conv(features)
    return hidden
