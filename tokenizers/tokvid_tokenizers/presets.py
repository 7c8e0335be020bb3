"""Named codec architectures; ``load_codec("preset:<name>")`` builds one with seeded random weights."""

from __future__ import annotations

from tokvid.errors import ModelError, did_you_mean
from tokvid_tokenizers.codec_config import CodecConfig
from tokvid_tokenizers.quantizers import FSQConfig

PRESETS: dict[str, CodecConfig] = {
    "base": CodecConfig(
        channels=(128, 256),
        encoder_blocks=(3, 4),
        decoder_blocks=(5, 5),
        quantizer=FSQConfig(levels=(8, 8, 8, 5, 5, 5)),
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


def preset(name: str) -> CodecConfig:
    """The configuration of a preset; :class:`ModelError` for an unknown name."""
    if name not in PRESETS:
        raise ModelError(f"unknown codec preset {name!r}: {did_you_mean(name, PRESETS)}")
    return PRESETS[name]
