"""What transformers' AutoConfig, AutoModel and AutoProcessor make of our folders, once this is imported.

Language models need none of it: they are plain models. A codec's ``config.json`` names its ``model_type``, and
``AutoModel`` gives the codec itself; a language model's folder names our processor. Nothing of a repository is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedConfig

from tokvid.hub import HubOptions
from tokvid_lm.processor import VideoProcessor
from tokvid_tokenizers import VideoCodec

_HUB = tuple(HubOptions.__annotations__)
# What the Auto classes hand on of their own accord. Of a repository nothing is run, whatever trust_remote_code says.
_THEIRS = ("adapter_kwargs", "name_or_path", "trust_remote_code", "_from_auto", "_commit_hash")


class VideoCodecConfig(PreTrainedConfig):
    """A codec's ``config.json`` as transformers hands it around: ``codec`` is what tokvid reads of it."""

    model_type = VideoCodec.model_type

    def __init__(self, codec: dict[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.codec = codec or {}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **settings: Any) -> Any:
        """Of the mapping in ``config.json``."""
        unused = settings.pop("return_unused_kwargs", False)
        config = cls(codec={name: value for name, value in config_dict.items() if name != "model_type"})
        return (config, settings) if unused else config

    def to_dict(self) -> dict[str, Any]:
        """The mapping again."""
        return {"model_type": self.model_type, **self.codec}


class AutoVideoCodec(VideoCodec):
    """A codec as ``AutoModel.from_pretrained`` loads it."""

    config_class = VideoCodecConfig

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, config: Any = None, dtype: torch.dtype | None = None, **settings: Any
    ) -> VideoCodec:
        """:meth:`VideoCodec.from_pretrained`, which reads the configuration itself; ``TypeError`` for what else
        transformers' models take."""
        return VideoCodec.from_pretrained(name, dtype=dtype, **_of_the_hub(settings))


class TokvidProcessor(VideoProcessor):
    """A processor as ``AutoProcessor.from_pretrained`` loads it."""

    @classmethod
    def from_pretrained(cls, name: str | Path, **settings: Any) -> Any:
        """:meth:`VideoProcessor.from_pretrained`; ``TypeError`` for what else transformers' processors take."""
        return VideoProcessor.from_pretrained(name, **_of_the_hub(settings))


def _of_the_hub(settings: dict[str, Any]) -> Any:
    """Those of ``settings`` that say where on the Hub; the Auto classes add some of their own, mostly empty."""
    odd = sorted(name for name, value in settings.items() if value and name not in (*_HUB, *_THEIRS))
    if odd:
        raise TypeError(f"tokvid's codecs and processors are loaded without {odd[0]}")
    return {name: settings[name] for name in _HUB if settings.get(name) is not None}


def register() -> None:
    """Make transformers know both; again does nothing."""
    AutoConfig.register(VideoCodec.model_type, VideoCodecConfig, exist_ok=True)
    AutoModel.register(VideoCodecConfig, AutoVideoCodec, exist_ok=True)
    AutoProcessor.register(VideoCodecConfig, TokvidProcessor, exist_ok=True)


register()
