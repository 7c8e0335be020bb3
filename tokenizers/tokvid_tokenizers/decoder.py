"""The causal decoder: quantized latents to frames."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from tokvid_tokenizers.codec_config import CodecConfig
from tokvid_tokenizers.layers.clip_shape import fold_time
from tokvid_tokenizers.layers.linear_path import LinearDecoder
from tokvid_tokenizers.layers.past import Past
from tokvid_tokenizers.layers.resample import Unpatchify, Upsample
from tokvid_tokenizers.layers.residual import ChannelNorm, ResidualStack


class Decoder(nn.Module):
    """Latents ``[B,D,t,h,w]`` -> frames ``[B,3,1+(t-1)*stride,H,W]``; a frame sees latent frames up to its own."""

    def __init__(self, config: CodecConfig, latent_dim: int) -> None:
        super().__init__()
        channels = config.channels[::-1]
        counts = config.decoder_blocks[::-1]
        self.stem = nn.Conv2d(latent_dim, channels[0], kernel_size=3, padding=1)
        self.blocks = nn.ModuleList(ResidualStack(width, count) for width, count in zip(channels, counts, strict=True))
        self.up = nn.ModuleList(Upsample(coarse, fine) for coarse, fine in itertools.pairwise(channels))
        self.norm = ChannelNorm(channels[-1])
        self.head = Unpatchify(config.temporal_stride, config.patch, channels[-1])
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
        t = latents.shape[2]
        features = self.stem(fold_time(latents))
        for level, blocks in enumerate(self.blocks):
            if level:
                features = self.up[level - 1](features)
            features = blocks(features, t, past)
        if past is not None:
            past.begun = True
        frames: Tensor = self.head(self.norm(features), t, begins=begins)
        return frames if self.linear is None else frames + self.linear(latents, begins=begins)
