"""The transformer codec: patches of pixels, attention within each latent frame and back over a few of them.

In the manner of C-ViViT (Villegas et al. 2022, arXiv 2210.02399) and OmniTokenizer (Wang et al. 2024, arXiv
2406.09399), and causal to the last step: no latent frame sees a later one, nor anything beyond its window.
"""

from __future__ import annotations

from torch import Tensor, nn

from tokvid_tokenizers.codec_config import TransformerCodecConfig
from tokvid_tokenizers.layers.attention import TransformerBlock
from tokvid_tokenizers.layers.clip_shape import fold_time, unfold_time
from tokvid_tokenizers.layers.linear_path import LinearDecoder, LinearEncoder
from tokvid_tokenizers.layers.past import Past
from tokvid_tokenizers.layers.resample import Patchify, Unpatchify
from tokvid_tokenizers.layers.residual import ChannelNorm
from tokvid_tokenizers.layers.stack import BlockStack


class TransformerEncoder(nn.Module):
    """Frames ``[B,3,T,H,W]`` -> latents ``[B,D,t,h,w]``; latent frame i sees its own frames and a few before."""

    def __init__(self, config: TransformerCodecConfig, latent_dim: int) -> None:
        super().__init__()
        self.stem = Patchify(config.temporal_stride, config.patch, config.channels)
        self.blocks = _blocks(config, config.encoder_blocks)
        self.norm = ChannelNorm(config.channels)
        self.head = nn.Conv2d(config.channels, latent_dim, kernel_size=1)
        self.linear = (
            LinearEncoder(config.temporal_stride, config.spatial_stride, latent_dim) if config.linear_path else None
        )

    def forward(self, frames: Tensor, past: Past | None = None) -> Tensor:
        """Encode frames ``[B,3,T,H,W]`` whose H and W are multiples of the spatial stride.

        With a ``past`` they are the next block of a clip: its first frame alone, then whole groups, then the rest.
        """
        begins = past is None or not past.begun
        features = self.stem(frames, begins=begins)
        t = len(features) // len(frames)
        features = self.blocks(features.permute(0, 2, 3, 1), t, past).permute(0, 3, 1, 2)
        latents = unfold_time(self.head(self.norm(features)), t)
        if past is not None:
            past.begun = True
        return latents if self.linear is None else latents + self.linear(frames, begins=begins)


class TransformerDecoder(nn.Module):
    """Latents ``[B,D,t,h,w]`` -> frames ``[B,3,1+(t-1)*stride,H,W]``; a frame sees its latent frame, a few before."""

    def __init__(self, config: TransformerCodecConfig, latent_dim: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(latent_dim, config.channels, kernel_size=1)
        self.blocks = _blocks(config, config.decoder_blocks)
        self.norm = ChannelNorm(config.channels)
        self.head = Unpatchify(config.temporal_stride, config.patch, config.channels)
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
        features = self.stem(fold_time(latents)).permute(0, 2, 3, 1)
        features = self.blocks(features, t, past).permute(0, 3, 1, 2)
        if past is not None:
            past.begun = True
        frames: Tensor = self.head(self.norm(features), t, begins=begins)
        return frames if self.linear is None else frames + self.linear(latents, begins=begins)


def _blocks(config: TransformerCodecConfig, count: int) -> BlockStack:
    """``count`` blocks; every second one has its windows shifted by half."""
    return BlockStack(
        TransformerBlock(
            config.channels,
            config.heads,
            spatial_window=config.spatial_window,
            shifted=number % 2 == 1,
            temporal_window=config.temporal_window,
            expansion=config.expansion,
        )
        for number in range(count)
    )
