"""The weights of VidTok: the files of its own training, the folders of diffusers, and what is in them.

Versions 1.0 and 1.1 name their weights alike, and diffusers kept the names, so that one reader serves all. Everything
else follows from names and shapes; which version it is does not.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Unpack

import torch
from torch import Tensor

from tokvid.errors import CheckpointError, ConfigError, ModelError
from tokvid.hub import HubOptions, local_folder, refuse_pickles
from tokvid.saved_json import read_mapping
from tokvid_tokenizers.codec import VideoCodec
from tokvid_tokenizers.codec_config import VidTokConfig
from tokvid_tokenizers.codec_folder import CONFIG_FILE, assign_exactly, read_weights
from tokvid_tokenizers.quantizers import FSQConfig, KLConfig

Version = Literal["1.0", "1.1"]

VERIFIED = (
    "FSQ and KL, causal and not: codes equal, latents and frames within 1e-4 of diffusers' AutoencoderVidTok (1.1) and"
    " of VidTok's own code (1.0) on random weights, tests/tokenizers/test_vidtok.py; published weights were not tried"
)
_CLASS = "AutoencoderVidTok"
_DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
# What a training keeps beside the codec: its losses with their networks, and the average of all weights.
_NOT_THE_CODEC = ("loss.", "model_ema.")
_RELEASED = re.compile(r"vidtok_(kl|fsq)_(non)?causal_\d+_\d+(chn)?(?P<later>_v1_1)?")
_LEVELS = 8
"""Of every channel of its FSQ."""


def load_vidtok(name: str | Path, **hub: Unpack[HubOptions]) -> VideoCodec:
    """A codec of VidTok from a folder or the Hub's ``org/name``, as diffusers or :func:`convert_vidtok` saved it.

    Raises :class:`ModelError` for another model, and for files that only unpickling could read.
    """
    if Path(name).is_file():
        raise ModelError(f"{name} is a file: make a folder of it once, tokvid convert vidtok:{name} FOLDER")
    folder = local_folder(name, **hub)
    if not (folder / CONFIG_FILE).is_file():
        refuse_pickles(folder)
        raise ModelError(f"{name} holds no {CONFIG_FILE}: neither diffusers nor tokvid saved a codec there")
    config = read_mapping(folder / CONFIG_FILE, "codec")
    if config.get("_class_name") == _CLASS:
        # diffusers knows the arithmetic of 1.1 alone, but for codecs that are not causal, which 1.0 alone has.
        version: Version = "1.1" if config.get("is_causal", True) else "1.0"
        return _codec(read_weights(folder / _DIFFUSERS_WEIGHTS), folder, version)
    codec = VideoCodec.from_pretrained(folder)
    if not isinstance(codec.config, VidTokConfig):
        raise ModelError(f"{name} is a codec of kind {codec.config.kind!r}, not of VidTok: leave vidtok: out")
    return codec


def convert_vidtok(file: str | Path, *, version: Version | None = None) -> tuple[VideoCodec, int]:
    """The codec in a ``.ckpt`` of VidTok's training, and how many tensors of its losses and averages were left out.

    The file is read by torch's restricted reader, which makes tensors and plain values alone and runs nothing. The
    names of the released files tell the ``version``; for others it must be given. Raises :class:`ModelError` where
    it is missing and for files that hold more, :class:`CheckpointError` for torn ones and for other models.
    """
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    tensors = read_weights(path) if path.suffix == ".safetensors" else _read_restricted(path)
    codec = {name: tensor for name, tensor in tensors.items() if not name.startswith(_NOT_THE_CODEC)}
    return _codec(codec, path, version or _told_version(path, codec)), len(tensors) - len(codec)


def vidtok_config(shapes: Mapping[str, torch.Size], version: Version) -> VidTokConfig:
    """What codec has weights of these names and ``shapes``; KeyError or :class:`ConfigError` if none of VidTok has."""
    causal = "encoder.conv_in.conv.weight" in shapes
    inner = ".conv" if causal else ""
    levels = _count(shapes, r"encoder\.down\.(\d+)\.block\.0\.")
    channels = tuple(shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels))
    latent = shapes[f"decoder.conv_in{inner}.weight"][1]
    encoded = shapes[f"encoder.conv_out{inner}.weight"][0]
    tempo_ds = _levels_with(shapes, "encoder.down_temporal.{}.downsample.mix_factor", levels)
    return VidTokConfig(
        version=version,
        causal=causal,
        channels=channels,
        blocks=_count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        temporal_stride=2 ** len(tempo_ds),
        spatial_ds=_levels_with(shapes, "encoder.down.{}.downsample.conv.weight", levels),
        tempo_ds=tempo_ds,
        spatial_us=_levels_with(shapes, "decoder.up.{}.upsample.conv.weight", levels),
        tempo_us=_levels_with(shapes, "decoder.up_temporal.{}.upsample.mix_factor", levels),
        quantizer=FSQConfig(levels=(_LEVELS,) * latent) if encoded == latent else KLConfig(dim=latent),
    )


def _codec(tensors: dict[str, Tensor], path: Path, version: Version) -> VideoCodec:
    try:
        config = vidtok_config({name: tensor.shape for name, tensor in tensors.items()}, version)
    except KeyError as error:
        raise CheckpointError(f"{path} holds no codec of VidTok: there is no tensor {error}") from None
    except ConfigError as error:
        raise CheckpointError(f"{path} holds a codec that VidTok never had: {error}") from error
    codec = VideoCodec(config)
    assign_exactly(codec, tensors, path)
    return codec.eval()


def _told_version(path: Path, tensors: Mapping[str, Tensor]) -> Version:
    if "encoder.conv_in.weight" in tensors:
        return "1.0"  # the only one with codecs that are not causal
    released = _RELEASED.fullmatch(path.stem)
    if released is None:
        raise ModelError(
            f"{path} does not say which version of VidTok it is, whose weights have the same names but other"
            " arithmetic: give --version 1.0 or 1.1"
        )
    return "1.1" if released["later"] else "1.0"


def _read_restricted(path: Path) -> dict[str, Tensor]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        called = re.search(r"GLOBAL (\S+)", str(error))
        raise ModelError(
            f"{path} holds more than tensors and plain values{f' ({called[1]})' if called else ''}, and tokvid runs"
            " nothing that a file says: save its 'state_dict' alone, where you trust it"
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        # Of a file that is no archive torch says how it could have been written.
        said = "" if "torch.save" in str(error) else f": {str(error).splitlines()[0]}"
        raise CheckpointError(f"{path} is torn, or no file of torch.save{said}") from error
    tensors = saved.get("state_dict", saved) if isinstance(saved, dict) else {}
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{path} holds no weights: a training of VidTok saves them as 'state_dict'")
    return dict(tensors)


def _count(shapes: Mapping[str, torch.Size], pattern: str) -> int:
    return len({found[1] for name in shapes if (found := re.match(pattern, name))})


def _levels_with(shapes: Mapping[str, torch.Size], name: str, levels: int) -> tuple[int, ...]:
    return tuple(level for level in range(levels) if name.format(level) in shapes)
