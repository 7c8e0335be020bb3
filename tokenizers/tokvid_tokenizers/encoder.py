"""The causal encoder: frames to continuous latents."""

from __future__ import annotations

from torch import Tensor, nn

from tokvid.grid import latent_frames
from tokvid_tokenizers.codec_config import CodecConfig
from tokvid_tokenizers.layers.clip_shape import unfold_time
from tokvid_tokenizers.layers.resample import Downsample, Patchify
from tokvid_tokenizers.layers.residual import ChannelNorm, ResidualStack


class Encoder(nn.Module):
    """Frames ``[B,3,T,H,W]`` -> latents ``[B,D,t,h,w]``; latent frame i sees only its own frames and earlier ones."""

    def __init__(self, config: CodecConfig, latent_dim: int) -> None:
        super().__init__()
        self.temporal_stride = config.temporal_stride
        self.key_frames = config.key_frames
        self.stem = Patchify(1 if config.key_frames else config.temporal_stride, config.patch, config.channels[0])
        self.blocks = nn.ModuleList(
            ResidualStack(channels, count, local=config.local_encoder)
            for channels, count in zip(config.channels, config.encoder_blocks, strict=True)
        )
        self.down = nn.ModuleList(
            Downsample(fine, coarse) for fine, coarse in zip(config.channels, config.channels[1:], strict=False)
        )
        self.norm = ChannelNorm(config.channels[-1])
        self.head = nn.Conv2d(config.channels[-1], latent_dim, kernel_size=1)

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames ``[B,3,T,H,W]`` whose H and W are multiples of the spatial stride."""
        if self.key_frames:
            frames = last_of_blocks(frames, self.temporal_stride)
        features = self.stem(frames)
        t = features.shape[0] // frames.shape[0]
        for level, blocks in enumerate(self.blocks):
            if level:
                features = self.down[level - 1](features)
            features = blocks(features, t)
        latents: Tensor = self.head(self.norm(features))
        return unfold_time(latents, t)


def last_of_blocks(frames: Tensor, stride: int) -> Tensor:
    """The first frame of ``[B,3,T,H,W]`` and the last of each ``stride`` after it, ``[B,3,t,H,W]``."""
    t = latent_frames(frames.shape[2], stride)
    last = [min(i * stride, frames.shape[2] - 1) for i in range(t)]
    return frames[:, :, last]
