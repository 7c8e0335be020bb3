"""The networks of VidTok (Tang et al. 2024, arXiv 2412.13061): its arithmetic, under its names of weights.

Convolutions over space and over time by turns at every resolution, with 3-D ones and attention over each picture in the
middle. Version 1.0 has zeros before a clip and repeats frames to get more of them; version 1.1 has the first frame
before a clip and draws lines between frames, for which its decoder looks one latent frame ahead. Both came with a
causal encoder, which fills the group of the first frame with copies of it; 1.0 also without, for whole clips.

Clips are ``[B,C,T,h,w]`` with the channels last in memory, so that every 2-D convolution sees them without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokvid_tokenizers.codec_config import VidTokConfig
from tokvid_tokenizers.layers.clip_shape import fold_time, unfold_time
from tokvid_tokenizers.layers.past import Past


class VidTokEncoder(nn.Module):
    """Frames ``[B,3,T,H,W]`` -> latents ``[B,D,t,h,w]``."""

    linear: None = None

    def __init__(self, config: VidTokConfig, latent_dim: int) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        self.conv_in = _conv(config, 3, widths[0], (3, 3, 3))
        self.down = nn.ModuleList()
        self.down_temporal = nn.ModuleList()
        for level, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            inputs = (before, *[width] * (config.blocks - 1))
            fewer_pixels = _Resample(_HalfSize(width)) if level in config.spatial_ds else None
            fewer_frames = _FewerFrames(config, width) if level in config.tempo_ds else None
            self.down.append(_Level([_Block(_space, config, each, width) for each in inputs], downsample=fewer_pixels))
            self.down_temporal.append(
                _Level([_Block(_time, config, width, width) for _ in inputs], downsample=fewer_frames)
            )
        self.mid = _Middle(config, widths[-1])
        self.norm_out = _Norm(widths[-1])
        self.conv_out = _conv(config, widths[-1], latent_dim, (3, 3, 3))

    @property
    def head(self) -> nn.Conv3d:
        """The convolution to latents."""
        return _inner(self.conv_out)

    def forward(self, frames: Tensor, past: Past | None = None) -> Tensor:
        """Encode frames whose H and W are multiples of the spatial stride; what the last group lacks is filled.

        With a ``past`` they are the next block of a clip: its first frame alone, then whole groups, then the rest.
        """
        stride = self.config.temporal_stride
        begins = self.config.causal and (past is None or not past.begun)
        first = frames[:, :, :1].expand(-1, -1, stride - 1 if begins else 0, -1, -1)
        missing = -(frames.shape[2] - begins) % stride
        last = frames[:, :, -1:].expand(-1, -1, missing, -1, -1)
        clip = self.conv_in(torch.cat([first, frames, last], dim=2), past)
        for space, time in _levels(self.down, self.down_temporal):
            clip = _by_turns(space, time, clip, past)
        if past is not None:
            past.begun = True
        latents: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(clip, past))), past)
        return latents


class VidTokDecoder(nn.Module):
    """Latents ``[B,D,t,h,w]`` -> frames ``[B,3,T,H,W]``: ``1+(t-1)*stride`` of them, ``t*stride`` if not causal."""

    linear: None = None

    def __init__(self, config: VidTokConfig, latent_dim: int) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        self.conv_in = _conv(config, latent_dim, widths[-1], (3, 3, 3))
        self.mid = _Middle(config, widths[-1])
        coarser = (*widths[1:], widths[-1])
        rates = _frames_a_latent(config)
        self.up = nn.ModuleList()
        self.up_temporal = nn.ModuleList()
        for level, (before, width) in enumerate(zip(coarser, widths, strict=True)):
            inputs = (before, *[width] * config.blocks)
            more_pixels = _Resample(_DoubleSize(width)) if level in config.spatial_us else None
            more_frames = _MoreFrames(config, width, rates[level]) if level in config.tempo_us else None
            self.up.append(_Level([_Block(_space, config, each, width) for each in inputs], upsample=more_pixels))
            self.up_temporal.append(_Level([_Block(_time, config, width, width) for _ in inputs], upsample=more_frames))
        self.norm_out = _Norm(widths[0])
        self.conv_out = _conv(config, widths[0], 3, (3, 3, 3))

    @property
    def stem(self) -> nn.Conv3d:
        """The convolution that takes latents."""
        return _inner(self.conv_in)

    @property
    def last_layer(self) -> nn.Conv3d:
        """What makes pixels."""
        return _inner(self.conv_out)

    def forward(self, latents: Tensor, past: Past | None = None) -> Tensor:
        """Decode latents, with a ``past`` the next block of a clip; the values are not clipped.

        Where the decoder looks ahead, the last frames of a block come with the next one, and all of them where
        ``past.ends``.
        """
        begins = self.config.causal and (past is None or not past.begun)
        clip = self.mid(self.conv_in(latents, past), past)
        for space, time in reversed(_levels(self.up, self.up_temporal)):
            clip = _by_turns(space, time, clip, past)
        if past is not None:
            past.begun = True
        frames: Tensor = self.conv_out(F.silu(self.norm_out(clip)), past)
        # Of the group of the first frame its last one is the frame; the others stand before the clip.
        return frames[:, :, self.config.temporal_stride - 1 :] if begins else frames


def _frames_a_latent(config: VidTokConfig) -> list[int]:
    """Of every level of the decoder, finest first: frames that one latent frame has become there."""
    return [2 ** sum(coarser > level for coarser in config.tempo_us) for level in range(len(config.channels))]


class _Level(nn.Module):
    """The blocks of one resolution, over space or over time, and what leads on from there."""

    def __init__(
        self, blocks: Sequence[nn.Module], *, downsample: nn.Module | None = None, upsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.downsample = downsample
        self.upsample = upsample


def _levels(space: nn.ModuleList, time: nn.ModuleList) -> list[tuple[_Level, _Level]]:
    return cast(list[tuple[_Level, _Level]], list(zip(space, time, strict=True)))


def _by_turns(space: _Level, time: _Level, clip: Tensor, past: Past | None) -> Tensor:
    """All of one resolution, and on to the next."""
    for over_space, over_time in zip(space.block, time.block, strict=True):
        clip = over_time(over_space(clip, past), past)
    for change in (space.downsample, time.downsample, space.upsample, time.upsample):
        clip = clip if change is None else change(clip, past)
    return clip


class _Middle(nn.Module):
    """At the coarsest resolution: a 3-D block, attention over each picture, another block."""

    def __init__(self, config: VidTokConfig, width: int) -> None:
        super().__init__()
        self.block_1 = _Block(_volume, config, width, width)
        self.attn_1 = _Attention(config, width)
        self.block_2 = _Block(_volume, config, width, width)

    def forward(self, clip: Tensor, past: Past | None) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(clip, past)), past)
        return out


class _Block(nn.Module):
    """``clip + conv(silu(norm(conv(silu(norm(clip))))))``; where the width changes, a convolution of one beside it."""

    def __init__(self, kind: tuple[int, int, int], config: VidTokConfig, width_in: int, width: int) -> None:
        super().__init__()
        self.norm1 = _Norm(width_in)
        self.conv1 = _conv(config, width_in, width, kind)
        self.norm2 = _Norm(width)
        self.conv2 = _conv(config, width, width, kind)
        # Only blocks over space change the width.
        self.nin_shortcut = None if width_in == width else _conv(config, width_in, width, (0, 1, 1))

    def forward(self, clip: Tensor, past: Past | None) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(clip)), past)
        hidden = self.conv2(F.silu(self.norm2(hidden)), past)
        out: Tensor = hidden + (clip if self.nin_shortcut is None else self.nin_shortcut(clip, past))
        return out


class _Norm(nn.Module):
    """LayerNorm over channels, each position alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, clip: Tensor) -> Tensor:
        normed: Tensor = self.norm(clip.movedim(1, -1))
        return normed.movedim(-1, 1)


class _Attention(nn.Module):
    """Every position of a picture looks at all of it, with one head."""

    def __init__(self, config: VidTokConfig, width: int) -> None:
        super().__init__()
        self.norm = _Norm(width)
        self.q, self.k, self.v, self.proj_out = (_conv(config, width, width, (1, 1, 1)) for _ in range(4))

    def forward(self, clip: Tensor, past: Past | None = None) -> Tensor:
        normed = self.norm(clip)
        q, k, v = (project(normed).flatten(3).permute(0, 2, 3, 1) for project in (self.q, self.k, self.v))
        seen = F.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2).unflatten(3, clip.shape[3:])
        out: Tensor = clip + self.proj_out(seen)
        return out


class _Resample(nn.Module):
    """A change of size, picture by picture."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, clip: Tensor, past: Past | None) -> Tensor:
        return unfold_time(self.conv(fold_time(clip)), clip.shape[2])


class _HalfSize(nn.Conv2d):
    """A convolution of stride 2, with zeros below and to the right."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, stride=2)

    def forward(self, pictures: Tensor) -> Tensor:
        return super().forward(F.pad(pictures, (0, 1, 0, 1)))


class _DoubleSize(nn.Conv2d):
    """Every pixel four times, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        return super().forward(F.interpolate(pictures, scale_factor=2.0, mode="nearest"))


class _Mixed(nn.Module):
    """A change of the number of frames by arithmetic alone, mixed with what a convolution makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def mix(self, plain: Tensor, convolved: Tensor) -> Tensor:
        share = torch.sigmoid(self.mix_factor)
        return share * plain + (1 - share) * convolved


class _FewerFrames(_Mixed):
    """Halves the number of frames: the mean of three, mixed with a convolution over them."""

    def __init__(self, config: VidTokConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.conv = _conv(config, width, width, _volume, stride=2)

    def forward(self, clip: Tensor, past: Past | None) -> Tensor:
        if self.config.causal:
            clip_in = with_frames_before(self, clip, 1, past, zeros=self.config.version == "1.0")
        else:
            clip = clip_in = F.pad(clip, (0, 0, 0, 0, 0, 1))
        means = (clip_in[:, :, :-2:2] + clip_in[:, :, 1:-1:2] + clip_in[:, :, 2::2]) / 3
        return self.mix(means, self.conv(clip, past))


class _MoreFrames(_Mixed):
    """Doubles the number of frames: each twice, or lines between them, mixed with a convolution over that.

    The lines of version 1.1 are drawn within the first latent frame, which is ``rate`` frames here, and within the
    rest of the clip, but not between those two.
    """

    def __init__(self, config: VidTokConfig, width: int, rate: int) -> None:
        super().__init__()
        self.looks_ahead = config.looks_ahead
        self.rate = rate
        self.conv = _conv(config, width, width, _volume)

    def forward(self, clip: Tensor, past: Past | None) -> Tensor:
        doubled = self._lines(clip, past) if self.looks_ahead else clip.repeat_interleave(2, dim=2)
        return self.mix(doubled, self.conv(doubled, past))

    def _lines(self, clip: Tensor, past: Past | None) -> Tensor:
        if past is None or not past.begun:
            first, rest = clip[:, :, : self.rate], clip[:, :, self.rate :]
            parts = [first, rest] if rest.shape[2] else [first]
            return torch.cat([_doubled_by_lines(part, None, ends=True) for part in parts], dim=2)
        return _doubled_by_lines(clip, past.exchange(self, clip[:, :, -1:]), ends=past.ends)


def _doubled_by_lines(clip: Tensor, before: Tensor | None, *, ends: bool) -> Tensor:
    """Twice the frames, at a quarter and three quarters between each two; beyond the ends there is the frame there.

    ``before`` is the frame before the clip, None where it begins. Where it does not end, the last of the new frames is
    left for the next block, as that of the one before it comes first here.
    """
    edge = clip[:, :, -1:] if ends else clip[:, :, :0]
    frames = torch.cat([clip[:, :, :1] if before is None else before, clip, edge], dim=2)
    one, other = frames[:, :, :-1], frames[:, :, 1:]
    between = torch.stack([0.75 * one + 0.25 * other, 0.25 * one + 0.75 * other], dim=3).flatten(2, 3)
    return between[:, :, before is None : between.shape[2] - ends]


# Kernels over time, height and width; of a kernel of 0 the weights have no such axis.
_space, _time, _volume = (0, 3, 3), (3, 0, 0), (3, 3, 3)


def _conv(config: VidTokConfig, width_in: int, width: int, kernel: tuple[int, int, int], stride: int = 1) -> nn.Module:
    """A convolution as VidTok has it; ``stride`` is that of time."""
    frames, height, _ = kernel
    if not frames:
        return _SpaceConv(width_in, width, height, padding=height // 2)
    around = 0 if config.causal or stride > 1 else frames // 2
    conv: nn.Conv1d | nn.Conv3d
    if height:
        sides = height // 2
        conv = _VolumeConv(width_in, width, kernel, stride=(stride, 1, 1), padding=(around, sides, sides))
    else:
        conv = _TimeConv(width_in, width, frames, padding=around)
    return _Causal(conv, frames - stride, zeros=config.version == "1.0") if config.causal else conv


def _inner(conv: nn.Module) -> nn.Conv3d:
    return cast(nn.Conv3d, conv.conv if isinstance(conv, _Causal) else conv)


class _SpaceConv(nn.Conv2d):
    """Over space alone."""

    def forward(self, clip: Tensor, past: Past | None = None) -> Tensor:
        return unfold_time(super().forward(fold_time(clip)), clip.shape[2])


class _TimeConv(nn.Conv1d):
    """Over time alone, as a 2-D convolution over frames and positions."""

    def forward(self, clip: Tensor, past: Past | None = None) -> Tensor:
        around = int(self.padding[0])
        convolved = F.conv2d(clip.flatten(3), self.weight.unsqueeze(-1), self.bias, padding=(around, 0))
        out: Tensor = convolved.unflatten(3, clip.shape[3:])
        return out


class _VolumeConv(nn.Conv3d):
    """Over time and space."""

    def forward(self, clip: Tensor, past: Past | None = None) -> Tensor:
        return super().forward(clip)


class _Causal(nn.Module):
    """A convolution that sees ``before`` frames of the past and none of the future."""

    def __init__(self, conv: nn.Conv1d | nn.Conv3d, before: int, *, zeros: bool) -> None:
        super().__init__()
        self.conv = conv
        self.before = before
        self.zeros = zeros

    def forward(self, clip: Tensor, past: Past | None = None) -> Tensor:
        out: Tensor = self.conv(with_frames_before(self, clip, self.before, past, zeros=self.zeros))
        return out


def with_frames_before(layer: nn.Module, clip: Tensor, count: int, past: Past | None, *, zeros: bool) -> Tensor:
    """``[B,C,T,h,w]`` -> ``[B,C,count+T,h,w]``: the last ``count`` frames of the blocks before, then this block.

    Before a clip there are zeros, or its first frame over and over.
    """
    if not count:
        return clip
    before = None if past is None else past.last(layer)
    if before is None:
        before = clip[:, :, :1].expand(-1, -1, count, -1, -1)
        before = torch.zeros_like(before) if zeros else before
    # Joined with the channels last, as they lie in memory: torch would turn them.
    joined = torch.cat([before.movedim(1, -1), clip.movedim(1, -1)], dim=1).movedim(-1, 1)
    if past is not None:
        past.exchange(layer, joined[:, :, -count:])
    return joined
