"""The folder of a saved codec: what may be replaced, what its configuration says, and weights that fit it exactly."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tokvid.errors import CheckpointError, ConfigError
from tokvid.hub import refuse_pickles
from tokvid.saved_json import read_mapping
from tokvid_tokenizers.codec_config import AnyCodecConfig, codec_config

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MODEL_TYPE = "tokvid_codec"
"""What ``config.json`` calls a codec, among the models of transformers."""


def read_config(folder: Path) -> AnyCodecConfig:
    """The configuration in ``folder``; :class:`CheckpointError` if there is none."""
    path = folder / CONFIG_FILE
    data = read_mapping(path, "codec")
    kind = data.pop("model_type", MODEL_TYPE)
    if kind != MODEL_TYPE:
        raise CheckpointError(f"{path} is of a model called {kind!r}, not of a codec of tokvid")
    try:
        return codec_config(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def check_replaceable(folder: Path) -> None:
    """Raise :class:`CheckpointError` where saving would remove what is not a codec's."""
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; choose a folder to save the codec in")
    names = sorted(path.name for path in folder.iterdir() if path.suffix != ".tmp") if folder.is_dir() else []
    others = [name for name in names if name not in (CONFIG_FILE, WEIGHTS_FILE)]
    if others:
        raise CheckpointError(
            f"{folder} holds more than a codec ({others[0]}); choose another folder or empty this one"
        )


def load_exactly(codec: nn.Module, folder: Path) -> None:
    """Give ``codec`` the weights in ``folder``: all of them and no others, of its shapes, and finite.

    Raises :class:`CheckpointError` for anything else, :class:`ModelError` where only unpickling could read them.
    """
    path = folder / WEIGHTS_FILE
    assign_exactly(codec, read_weights(path), path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """What a safetensors file holds; raises as :func:`load_exactly` does."""
    try:
        return load_file(path)
    except FileNotFoundError:
        refuse_pickles(path.parent)
        raise CheckpointError(f"{path} is missing: this folder holds no codec weights") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is torn or no safetensors file ({error}); save or copy it again") from error


def assign_exactly(codec: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """The same with the ``tensors`` that ``path`` held."""
    wanted = codec.state_dict()
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    both = sorted(wanted.keys() & tensors.keys())
    shapes = [name for name in both if wanted[name].shape != tensors[name].shape]
    types = [name for name in both if wanted[name].is_floating_point() != tensors[name].is_floating_point()]
    if missing or extra or shapes or types:
        faults = [
            f"{len(names)} {word} (first: {names[0]})"
            for names, word in (
                (missing, "missing"),
                (extra, "unknown"),
                (shapes, "of another shape"),
                (types, "of another type"),
            )
            if names
        ]
        raise CheckpointError(f"{path} does not hold the weights of this codec: tensors {', '.join(faults)}")
    broken = [name for name in both if not tensors[name].float().isfinite().all()]
    if broken:
        raise CheckpointError(f"{path}: the tensor '{broken[0]}' holds NaN or infinite values; take another checkpoint")
    codec.load_state_dict(tensors)
