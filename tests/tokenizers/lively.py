"""What the tests of the codecs share: codecs in which every layer acts, and pictures to feed them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from tokvid_tokenizers import CodecConfig, FactorisedCodecConfig, TransformerCodecConfig, VideoCodec, load_codec
from tokvid_tokenizers.codec_config import AnyCodecConfig
from tokvid_tokenizers.quantizers import FSQConfig

SMALLEST = CodecConfig(
    patch=4, channels=(8,), encoder_blocks=(1,), decoder_blocks=(1,), quantizer=FSQConfig(levels=(5, 5, 3))
)
FACTORISED = FactorisedCodecConfig(
    patch=2,
    channels=(8, 12),
    encoder_blocks=(1, 1),
    decoder_blocks=(1, 1),
    halves_time=(True, True),
    quantizer=FSQConfig(levels=(5, 5, 3)),
)
TRANSFORMER = TransformerCodecConfig(
    patch=4,
    channels=16,
    heads=2,
    encoder_blocks=2,
    decoder_blocks=2,
    temporal_window=2,
    spatial_window=2,
    expansion=2,
    quantizer=FSQConfig(levels=(5, 5, 3)),
)
NEW_KINDS: dict[str, FactorisedCodecConfig | TransformerCodecConfig] = {
    "factorised": FACTORISED,
    "transformer": TRANSFORMER,
}
ALL_KINDS: dict[str, AnyCodecConfig] = {"shift": SMALLEST, **NEW_KINDS}
LINEAR: dict[str, AnyCodecConfig] = {
    f"{kind} with linear path": replace(config, linear_path=True) for kind, config in ALL_KINDS.items()
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Frames or latents, uniform in [-1, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def enliven(codec: VideoCodec, seed: int = 0) -> VideoCodec:
    """Give the residual branches weights: they start at zero, where no test sees what they look at."""
    generator = torch.Generator().manual_seed(seed)
    _fill_zeros(codec, generator)
    codec.calibrate(noise(2, 3, 5, 32, 32, seed=seed))
    _fill_zeros(codec, generator)  # the heads beside a linear path
    return codec.eval()


@torch.no_grad()
def _fill_zeros(codec: VideoCodec, generator: torch.Generator) -> None:
    for module in codec.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.any():
            fan_in = module.weight[0].numel()
            module.weight.normal_(std=fan_in**-0.5, generator=generator)


def lively_preset(name: str) -> VideoCodec:
    """A preset in which every layer acts and the codes vary from position to position."""
    return enliven(load_codec(f"preset:{name}"))


def smallest_codec(seed: int = 0, config: AnyCodecConfig = SMALLEST) -> VideoCodec:
    """The smallest codec that has every part but a second resolution, or one of another configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return enliven(VideoCodec(config), seed)


def settled(codec: VideoCodec, latents: Tensor, margin: float = 1e-4) -> Tensor:
    """Where ``latents`` [B,D,t,h,w] are so far from a rounding boundary that an error of ``margin`` keeps the codes.

    Bool like the codes. Rounding is monotonic in each channel, so the two ends of the interval speak for all of it.
    """
    below, above = (codec.quantizer(latents + shift).codes for shift in (-margin, margin))
    return torch.eq(below, above)
