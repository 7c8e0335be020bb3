"""Named codec architectures; ``load_codec("preset:<name>")`` builds one with seeded random weights."""

from __future__ import annotations

from tokvid.errors import ModelError, did_you_mean
from tokvid_tokenizers.codec_config import (
    AnyCodecConfig,
    CodecConfig,
    FactorisedCodecConfig,
    TransformerCodecConfig,
)
from tokvid_tokenizers.quantizers import FSQConfig

_64000_CODES = FSQConfig(levels=(8, 8, 8, 5, 5, 5))

PRESETS: dict[str, AnyCodecConfig] = {
    "base": CodecConfig(
        linear_path=True,
        channels=(128, 256),
        encoder_blocks=(3, 4),
        decoder_blocks=(5, 5),
        quantizer=_64000_CODES,
    ),
    # Time at the frame rate: the most arithmetic of all.
    "quality": FactorisedCodecConfig(
        patch=2,
        channels=(64, 128, 256),
        encoder_blocks=(2, 2, 3),
        decoder_blocks=(3, 3, 4),
        halves_time=(False, True, True),
        quantizer=_64000_CODES,
    ),
    "transformer": TransformerCodecConfig(
        channels=384,
        heads=6,
        encoder_blocks=4,
        decoder_blocks=6,
        quantizer=_64000_CODES,
    ),
    # A quarter of the codes: cells of 16x16 pixels.
    "compact": CodecConfig(
        channels=(128, 256, 384),
        encoder_blocks=(2, 3, 3),
        decoder_blocks=(3, 4, 4),
        quantizer=_64000_CODES,
    ),
    # About half of the codes: 8 frames to a latent frame.
    "long": CodecConfig(
        temporal_stride=8,
        channels=(192, 320),
        encoder_blocks=(2, 4),
        decoder_blocks=(4, 5),
        quantizer=_64000_CODES,
    ),
    # A latent frame for every frame.
    "image": CodecConfig(
        temporal_stride=1,
        channels=(96, 192),
        encoder_blocks=(2, 4),
        decoder_blocks=(4, 5),
        quantizer=_64000_CODES,
    ),
    "small": CodecConfig(
        channels=(96, 192),
        encoder_blocks=(2, 2),
        decoder_blocks=(3, 3),
        quantizer=FSQConfig(levels=(8, 8, 8, 8)),
    ),
    "tiny": CodecConfig(
        channels=(32, 48),
        encoder_blocks=(1, 1),
        decoder_blocks=(1, 1),
        quantizer=FSQConfig(levels=(8, 5, 5, 5)),
    ),
}


def preset(name: str) -> AnyCodecConfig:
    """The configuration of a preset; :class:`ModelError` for an unknown name."""
    if name not in PRESETS:
        raise ModelError(f"unknown codec preset {name!r}: {did_you_mean(name, PRESETS)}")
    return PRESETS[name]
