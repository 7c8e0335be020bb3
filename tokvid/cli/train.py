"""Train what a recipe describes: a codec or a video language model.

tokvid train recipes/codec/sprites-tiny.yaml
tokvid train codec/sprites-tiny --training.steps=200 --output=runs/mine
tokvid train codec/sprites-tiny --resume
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from tokvid.cli.clips import load_splits
from tokvid.cli.progress import counted
from tokvid.errors import ConfigError, did_you_mean
from tokvid.recipe import load_recipe

TASKS = ("codec", "lm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``RECIPE [--resume] [--a.b=value ...]``."""
    parser.add_argument("recipe", metavar="RECIPE", help="a file, or a name of 'tokvid recipes list'")
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint of the output")


def run(arguments: argparse.Namespace) -> int:
    """Train, print where the result is and how good it is."""
    data = load_recipe(arguments.recipe, arguments.overrides)
    task = data.get("task")
    if task not in TASKS:
        raise ConfigError(f"'task' is {task!r}: {did_you_mean(str(task), TASKS)}")
    figures = _codec(data, resume=arguments.resume) if task == "codec" else _lm(data, resume=arguments.resume)
    print(json.dumps(figures, indent=2))
    return 0


def _codec(data: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    from tokvid.config import from_mapping
    from tokvid_tokenizers.training import train_codec
    from tokvid_tokenizers.training_config import CodecRecipe

    recipe = from_mapping(CodecRecipe, data)
    trained = train_codec(recipe, *load_splits(recipe.data), resume=resume)
    figures: dict[str, Any] = {"codec": str(trained.folder), **trained.evaluation.figures()}
    return figures


def _lm(data: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    from tokvid.config import from_mapping
    from tokvid_lm.training import train_lm
    from tokvid_lm.training_config import LMRecipe

    recipe = from_mapping(LMRecipe, data)
    with counted("encoding") as progress:
        trained = train_lm(recipe, *load_splits(recipe.data), resume=resume, progress=progress)
    return {"model": str(trained.folder), **trained.losses.figures()}
