"""The causal encoder: frames to continuous latents."""

from __future__ import annotations

from torch import Tensor, nn

from tokvid_tokenizers.codec_config import CodecConfig
from tokvid_tokenizers.layers.clip_shape import unfold_time
from tokvid_tokenizers.layers.linear_path import LinearEncoder
from tokvid_tokenizers.layers.past import Past
from tokvid_tokenizers.layers.resample import Downsample, Patchify
from tokvid_tokenizers.layers.residual import ChannelNorm, ResidualStack


class Encoder(nn.Module):
    """Frames ``[B,3,T,H,W]`` -> latents ``[B,D,t,h,w]``; latent frame i sees only its own frames and earlier ones."""

    def __init__(self, config: CodecConfig, latent_dim: int) -> None:
        super().__init__()
        self.temporal_stride = config.temporal_stride
        self.key_frames = config.key_frames
        stride = 1 if config.key_frames else config.temporal_stride
        self.stem = Patchify(stride, config.patch, config.channels[0])
        self.blocks = nn.ModuleList(
            ResidualStack(channels, count, local=config.local_encoder)
            for channels, count in zip(config.channels, config.encoder_blocks, strict=True)
        )
        self.down = nn.ModuleList(
            Downsample(fine, coarse) for fine, coarse in zip(config.channels, config.channels[1:], strict=False)
        )
        self.norm = ChannelNorm(config.channels[-1])
        self.head = nn.Conv2d(config.channels[-1], latent_dim, kernel_size=1)
        self.linear = LinearEncoder(stride, config.spatial_stride, latent_dim) if config.linear_path else None

    def forward(self, frames: Tensor, past: Past | None = None) -> Tensor:
        """Encode frames ``[B,3,T,H,W]`` whose H and W are multiples of the spatial stride.

        With a ``past`` they are the next block of a clip: its first frame alone, then whole groups, at the end the
        rest.
        """
        begins = past is None or not past.begun
        if self.key_frames:
            frames = last_of_groups(frames, self.temporal_stride, begins=begins)
        features = self.stem(frames, begins=begins)
        t = features.shape[0] // frames.shape[0]
        for level, blocks in enumerate(self.blocks):
            if level:
                features = self.down[level - 1](features)
            features = blocks(features, t, past)
        latents = unfold_time(self.head(self.norm(features)), t)
        if past is not None:
            past.begun = True
        return latents if self.linear is None else latents + self.linear(frames, begins=begins)


def last_of_groups(frames: Tensor, stride: int, *, begins: bool) -> Tensor:
    """The last frame of each group of ``stride`` in ``[B,3,T,H,W]``; where a clip ``begins``, also the first alone."""
    count = frames.shape[2]
    ends = [*range(0 if begins else stride - 1, count, stride)]
    return frames[:, :, ends if ends and ends[-1] == count - 1 else [*ends, count - 1]]
