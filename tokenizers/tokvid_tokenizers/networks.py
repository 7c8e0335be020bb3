"""The networks of a codec, chosen by the type of its configuration."""

from __future__ import annotations

from typing import assert_never

from tokvid_tokenizers.codec_config import (
    AnyCodecConfig,
    CodecConfig,
    FactorisedCodecConfig,
    TransformerCodecConfig,
    VidTokConfig,
)
from tokvid_tokenizers.decoder import Decoder
from tokvid_tokenizers.encoder import Encoder
from tokvid_tokenizers.factorised import FactorisedDecoder, FactorisedEncoder
from tokvid_tokenizers.published.vidtok import VidTokDecoder, VidTokEncoder
from tokvid_tokenizers.transformer import TransformerDecoder, TransformerEncoder

AnyEncoder = Encoder | FactorisedEncoder | TransformerEncoder | VidTokEncoder
AnyDecoder = Decoder | FactorisedDecoder | TransformerDecoder | VidTokDecoder


def build_encoder(config: AnyCodecConfig, latent_dim: int) -> AnyEncoder:
    """Frames to ``latent_dim`` channels; ``head`` is the convolution to latents."""
    match config:
        case CodecConfig():
            return Encoder(config, latent_dim)
        case FactorisedCodecConfig():
            return FactorisedEncoder(config, latent_dim)
        case TransformerCodecConfig():
            return TransformerEncoder(config, latent_dim)
        case VidTokConfig():
            return VidTokEncoder(config, latent_dim)
        case _:
            assert_never(config)


def build_decoder(config: AnyCodecConfig, latent_dim: int) -> AnyDecoder:
    """``latent_dim`` channels to frames; its ``stem`` is a convolution, ``last_layer`` makes pixels."""
    match config:
        case CodecConfig():
            return Decoder(config, latent_dim)
        case FactorisedCodecConfig():
            return FactorisedDecoder(config, latent_dim)
        case TransformerCodecConfig():
            return TransformerDecoder(config, latent_dim)
        case VidTokConfig():
            return VidTokDecoder(config, latent_dim)
        case _:
            assert_never(config)
