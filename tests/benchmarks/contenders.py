"""The codecs of the training race behind one face: frames in, a reconstruction and the quantizer's loss out.

All make 5x16x16 cells of 17x128x128 and have a finite scalar quantizer of 8^6 codes, 18 bits a cell. The peers are
built as their packages build them; narrowing changes nothing but the width of their layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

LEVELS = [8] * 6


class Ours(nn.Module):
    """A preset of tokvid, with a quantizer of as many codes as the others have."""

    def __init__(self, preset: str) -> None:
        super().__init__()
        from tokvid_tokenizers.codec import VideoCodec
        from tokvid_tokenizers.presets import PRESETS
        from tokvid_tokenizers.quantizers import FSQConfig

        self.codec = VideoCodec(replace(PRESETS[preset], quantizer=FSQConfig(levels=tuple(LEVELS))))

    def calibrate(self, frames: Tensor) -> None:
        """What every training of tokvid begins with."""
        self.codec.calibrate(frames)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        output = self.codec(frames)
        return output.frames, output.quantizer.loss


class Cosmos(nn.Module):
    """diffusers' Cosmos autoencoder at strides 4x8x8 with six latent channels, which FSQ rounds."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import AutoencoderKLCosmos
        from vector_quantize_pytorch import FSQ

        self.codec = AutoencoderKLCosmos(
            spatial_compression_ratio=8, temporal_compression_ratio=4, latent_channels=len(LEVELS)
        )
        self.quantizer = FSQ(LEVELS)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.codec.encode(frames).latent_dist.mode()
        quantized, _ = self.quantizer(latents.float())
        return self.codec.decode(quantized.to(latents.dtype)).sample, latents.new_zeros(())


class VidTok(nn.Module):
    """diffusers' VidTok, causal, FSQ, of ``ch`` channels at full resolution (128 in the package)."""

    def __init__(self, ch: int) -> None:
        super().__init__()
        from diffusers import AutoencoderVidTok

        self.codec = AutoencoderVidTok(
            ch=ch, z_channels=len(LEVELS), double_z=False, regularizer="fsq", codebook_size=8 ** len(LEVELS)
        )

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        # It wants the first frame as a whole group, and gives it back as one frame.
        first = frames[:, :, :1].expand(-1, -1, self.codec.temporal_compression_ratio - 1, -1, -1)
        latents = self.codec.encode(torch.cat([first, frames], dim=2))[0]
        return self.codec.decode(latents), frames.new_zeros(())


class Magvit2(nn.Module):
    """magvit2-pytorch in the manner of its README, with three halvings of space and two of time."""

    def __init__(self, init_dim: int) -> None:
        super().__init__()
        from magvit2_pytorch import VideoTokenizer

        blocks = ("consecutive_residual", 2)
        self.codec = VideoTokenizer(
            image_size=128,
            init_dim=init_dim,
            layers=(
                "residual",
                "compress_space",
                blocks,
                "compress_space",
                blocks,
                "compress_space",
                "compress_time",
                blocks,
                "compress_time",
                blocks,
            ),
            use_fsq=True,
            fsq_levels=LEVELS,
            use_gan=False,
            perceptual_loss_weight=0.0,
            flash_attn=False,
        )

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        return self.codec(frames, return_recon=True), frames.new_zeros(())


CONTENDERS: dict[str, Callable[[], nn.Module]] = {
    "tokvid base": lambda: Ours("base"),
    "tokvid quality": lambda: Ours("quality"),
    "tokvid transformer": lambda: Ours("transformer"),
    "Cosmos": Cosmos,
    "VidTok": lambda: VidTok(128),
    "VidTok narrowed": lambda: VidTok(12),
    "magvit2-pytorch narrowed": lambda: Magvit2(8),
}
