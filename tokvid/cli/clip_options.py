"""What shape of clips a verb reads from DATA: the options of it, and the clips that they describe."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokvid.cli.generate import parse_size
from tokvid.config import from_union
from tokvid.data.clips import DataConfig, FolderDataConfig, SpriteDataConfig
from tokvid.errors import ConfigError
from tokvid.recipe import load_recipe, shipped_recipes

SPRITES = "sprites"
_SIZE, _FRAMES, _FPS = "64x64", 17, 8.0


def add_shape_options(parser: argparse.ArgumentParser) -> None:
    """``--size``, ``--frames`` and ``--fps`` of the clips."""
    parser.add_argument("--size", metavar="HxW", help=f"of the clips in pixels (default {_SIZE})")
    parser.add_argument("--frames", type=int, help=f"frames of a clip (default {_FRAMES})")
    parser.add_argument("--fps", type=float, help=f"frames a second that clips are read at (default {_FPS:g})")


def shape(arguments: argparse.Namespace) -> dict[str, Any]:
    """``size`` (H, W), ``num_frames`` and ``fps`` as the configurations of clips call them, defaults included."""
    return {"size": parse_size(_SIZE), "num_frames": _FRAMES, "fps": _FPS} | given_shape(arguments)


def given_shape(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of :func:`shape` that stand on the command line."""
    size = None if arguments.size is None else parse_size(arguments.size)
    given = {"size": size, "num_frames": arguments.frames, "fps": arguments.fps}
    return {name: value for name, value in given.items() if value is not None}


def data_config(data: str, arguments: argparse.Namespace) -> DataConfig:
    """The clips of ``data``: ``sprites``, a folder of videos, or a recipe, whose data section says the rest."""
    if data == SPRITES:
        return SpriteDataConfig(**shape(arguments))
    is_recipe = Path(data).suffix.lower() in (".yaml", ".yml") or data in shipped_recipes()
    if not is_recipe or Path(data).is_dir():
        return FolderDataConfig(path=data, **shape(arguments))
    recipe = load_recipe(data)
    if not isinstance(recipe.get("data"), dict):
        raise ConfigError(f"{data}: has no section 'data', which says of what clips are made; name another recipe")
    config: DataConfig = from_union(DataConfig, recipe["data"], where="data")
    return replace(config, **given_shape(arguments))
