"""Video codecs: models that turn video into integers and back, and how they are trained."""

from __future__ import annotations

from tokvid_tokenizers.codec import CodecOutput, VideoCodec
from tokvid_tokenizers.codec_config import CodecConfig, FactorisedCodecConfig, TransformerCodecConfig, VidTokConfig
from tokvid_tokenizers.registry import list_codecs, load_codec

__all__ = [
    "CodecConfig",
    "CodecOutput",
    "FactorisedCodecConfig",
    "TransformerCodecConfig",
    "VidTokConfig",
    "VideoCodec",
    "list_codecs",
    "load_codec",
]
