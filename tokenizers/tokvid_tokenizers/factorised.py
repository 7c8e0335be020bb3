"""The factorised codec: convolutions over space and over time by turns, the frames fewer from level to level.

In the manner of MAGVIT-v2 (Yu et al. 2023, arXiv 2310.05737) and VidTok (Tang et al. 2024, arXiv 2412.13061), whose
3-D convolutions and statistics it does without: time has its own 1-D convolutions, and norms are over channels alone.
It works at the frame rate where the codec of kind ``shift`` works at the latent rate, which costs arithmetic and shows
how things move.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokvid_tokenizers.codec_config import FactorisedCodecConfig
from tokvid_tokenizers.layers.clip_shape import fold_time, unfold_time
from tokvid_tokenizers.layers.linear_path import LinearDecoder, LinearEncoder
from tokvid_tokenizers.layers.past import Past
from tokvid_tokenizers.layers.resample import Downsample, Patchify, Unpatchify, Upsample
from tokvid_tokenizers.layers.residual import ChannelNorm
from tokvid_tokenizers.layers.stack import BlockStack
from tokvid_tokenizers.layers.temporal import TemporalBlock, TemporalDownsample, TemporalUpsample


class FactorisedEncoder(nn.Module):
    """Frames ``[B,3,T,H,W]`` -> latents ``[B,D,t,h,w]``; latent frame i sees its own frames and earlier ones."""

    def __init__(self, config: FactorisedCodecConfig, latent_dim: int) -> None:
        super().__init__()
        self.temporal_stride = config.temporal_stride
        self.stem = Patchify(1, config.patch, config.channels[0])
        finer = (None, *config.channels[:-1])
        self.levels = nn.ModuleList(
            _EncoderLevel(*level)
            for level in zip(finer, config.channels, config.halves_time, config.encoder_blocks, strict=True)
        )
        self.norm = ChannelNorm(config.channels[-1])
        self.head = nn.Conv2d(config.channels[-1], latent_dim, kernel_size=1)
        self.linear = (
            LinearEncoder(config.temporal_stride, config.spatial_stride, latent_dim) if config.linear_path else None
        )

    def forward(self, frames: Tensor, past: Past | None = None) -> Tensor:
        """Encode frames ``[B,3,T,H,W]`` whose H and W are multiples of the spatial stride.

        With a ``past`` they are the next block of a clip: its first frame alone, then whole groups, then the rest.
        """
        begins = past is None or not past.begun
        missing = -(frames.shape[2] - begins) % self.temporal_stride
        last = frames[:, :, -1:].expand(-1, -1, missing, -1, -1)
        filled = torch.cat([frames, last], dim=2)
        features = self.stem(filled, begins=begins)
        for level in self.levels:
            features = level(features, len(filled), begins, past)
        latents = unfold_time(self.head(self.norm(features)), len(features) // len(filled))
        if past is not None:
            past.begun = True
        return latents if self.linear is None else latents + self.linear(frames, begins=begins)


class FactorisedDecoder(nn.Module):
    """Latents ``[B,D,t,h,w]`` -> frames ``[B,3,1+(t-1)*stride,H,W]``; a frame sees latent frames up to its own."""

    def __init__(self, config: FactorisedCodecConfig, latent_dim: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(latent_dim, config.channels[-1], kernel_size=3, padding=1)
        finer = (None, *config.channels[:-1])
        levels = zip(config.channels, finer, config.halves_time, config.decoder_blocks, strict=True)
        self.levels = nn.ModuleList(_DecoderLevel(*level) for level in reversed(list(levels)))
        self.norm = ChannelNorm(config.channels[0])
        self.head = Unpatchify(1, config.patch, config.channels[0])
        self.linear = (
            LinearDecoder(config.temporal_stride, config.spatial_stride, latent_dim) if config.linear_path else None
        )

    @property
    def last_layer(self) -> nn.Linear:
        """What makes pixels."""
        return self.head.project

    def forward(self, latents: Tensor, past: Past | None = None) -> Tensor:
        """Decode latents ``[B,D,t,h,w]``, with a ``past`` the next block of a clip; the values are not clipped."""
        begins = past is None or not past.begun
        features = self.stem(fold_time(latents))
        for level in self.levels:
            features = level(features, len(latents), begins, past)
        if past is not None:
            past.begun = True
        frames: Tensor = self.head(self.norm(features), len(features) // len(latents), begins=begins)
        return frames if self.linear is None else frames + self.linear(latents, begins=begins)


class SpatialBlock(nn.Module):
    """``features + conv(silu(norm(conv(silu(norm(features))))))`` with 3x3 convolutions; the last starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_in = ChannelNorm(channels)
        self.conv_in = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.norm_out = ChannelNorm(channels)
        self.conv_out = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """``[N,C,h,w]`` -> the same shape."""
        hidden = self.conv_in(F.silu(self.norm_in(features)))
        out: Tensor = features + self.conv_out(F.silu(self.norm_out(hidden)))
        return out


class FactorisedBlock(nn.Module):
    """A block over space, then one over time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.space = SpatialBlock(channels)
        self.time = TemporalBlock(channels)

    def forward(self, features: Tensor, t: int, past: Past | None = None) -> Tensor:
        """``[B*t,C,h,w]`` -> the same shape."""
        out: Tensor = self.time(self.space(features), t, past)
        return out


class _EncoderLevel(nn.Module):
    """Smaller pictures (from ``finer`` channels), perhaps fewer frames, then blocks."""

    def __init__(self, finer: int | None, channels: int, halves_time: bool, count: int) -> None:
        super().__init__()
        self.down = None if finer is None else Downsample(finer, channels)
        self.fewer_frames = TemporalDownsample(channels) if halves_time else None
        self.blocks = BlockStack(FactorisedBlock(channels) for _ in range(count))

    def forward(self, features: Tensor, batch: int, begins: bool, past: Past | None) -> Tensor:
        """``[B*t,C,h,w]`` of ``batch`` clips -> ``[B*t',C',h',w']``."""
        if self.down is not None:
            features = self.down(features)
        if self.fewer_frames is not None:
            features = self.fewer_frames(features, len(features) // batch, past, begins=begins)
        out: Tensor = self.blocks(features, len(features) // batch, past)
        return out


class _DecoderLevel(nn.Module):
    """The way back: blocks, perhaps more frames, then larger pictures (of ``finer`` channels)."""

    def __init__(self, channels: int, finer: int | None, halves_time: bool, count: int) -> None:
        super().__init__()
        self.blocks = BlockStack(FactorisedBlock(channels) for _ in range(count))
        self.more_frames = TemporalUpsample(channels) if halves_time else None
        self.up = None if finer is None else Upsample(channels, finer)

    def forward(self, features: Tensor, batch: int, begins: bool, past: Past | None) -> Tensor:
        """``[B*t,C,h,w]`` of ``batch`` clips -> ``[B*t',C',h',w']``."""
        features = self.blocks(features, len(features) // batch, past)
        if self.more_frames is not None:
            features = self.more_frames(features, len(features) // batch, begins=begins)
        return features if self.up is None else self.up(features)
