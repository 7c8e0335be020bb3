"""Quantizers behind one contract; :func:`build_quantizer` chooses by the ``kind`` of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokvid.config import from_mapping
from tokvid_tokenizers.quantizers.base import Quantizer, QuantizerOutput
from tokvid_tokenizers.quantizers.bsq import BSQConfig, BSQuantizer
from tokvid_tokenizers.quantizers.composed import (
    GroupedConfig,
    GroupedQuantizer,
    ResidualConfig,
    ResidualQuantizer,
    SingleConfig,
    build_single,
)
from tokvid_tokenizers.quantizers.fsq import FSQConfig, FSQuantizer
from tokvid_tokenizers.quantizers.kl import GaussianBottleneck, KLConfig
from tokvid_tokenizers.quantizers.lfq import LFQConfig, LFQuantizer
from tokvid_tokenizers.quantizers.simvq import SimVQConfig, SimVQuantizer
from tokvid_tokenizers.quantizers.vq import VectorQuantizer, VQConfig

QuantizerConfig = SingleConfig | ResidualConfig | GroupedConfig | KLConfig

__all__ = [
    "BSQConfig",
    "BSQuantizer",
    "FSQConfig",
    "FSQuantizer",
    "GaussianBottleneck",
    "GroupedConfig",
    "GroupedQuantizer",
    "KLConfig",
    "LFQConfig",
    "LFQuantizer",
    "Quantizer",
    "QuantizerConfig",
    "QuantizerOutput",
    "ResidualConfig",
    "ResidualQuantizer",
    "SimVQConfig",
    "SimVQuantizer",
    "VQConfig",
    "VectorQuantizer",
    "build_quantizer",
]


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """What lets a plain mapping choose among the configurations by its kind."""

    quantizer: QuantizerConfig


def build_quantizer(config: QuantizerConfig | Mapping[str, Any]) -> Quantizer:
    """Build the quantizer a configuration (or its plain mapping, chosen by ``kind``) describes.

    ``build_quantizer({"kind": "lfq", "codebook_size": 2**18})``; raises :class:`ConfigError` for an unknown kind or
    key.
    """
    if isinstance(config, Mapping):
        config = from_mapping(_Chosen, {"quantizer": config}).quantizer
    match config:
        case ResidualConfig():
            return ResidualQuantizer(config)
        case GroupedConfig():
            return GroupedQuantizer(config)
        case KLConfig():
            return GaussianBottleneck(config)
        case _:
            return build_single(config)
