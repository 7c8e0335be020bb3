"""Quantizers behind one contract; :func:`build_quantizer` chooses by the ``kind`` of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokvid.config import from_mapping
from tokvid.errors import ConfigError, did_you_mean
from tokvid_tokenizers.quantizers.base import Quantizer, QuantizerOutput
from tokvid_tokenizers.quantizers.fsq import FSQConfig, FSQuantizer

QuantizerConfig = FSQConfig

__all__ = ["FSQConfig", "FSQuantizer", "Quantizer", "QuantizerConfig", "QuantizerOutput", "build_quantizer"]


def build_quantizer(config: QuantizerConfig | Mapping[str, Any]) -> Quantizer:
    """Build the quantizer a configuration (or its plain mapping, chosen by ``kind``) describes."""
    if isinstance(config, Mapping):
        if config.get("kind") != "fsq":
            raise ConfigError(
                f"quantizer kind {config.get('kind')!r}: {did_you_mean(str(config.get('kind')), ['fsq'])}"
            )
        config = from_mapping(FSQConfig, config, where="quantizer")
    return FSQuantizer(config)
