"""Train what a recipe describes: a codec or its refiner, a video language model or its diffusion head.

tokvid train recipes/codec/sprites-tiny.yaml
tokvid train codec/sprites-tiny --training.steps=200 --output=runs/mine
tokvid train codec/sprites-tiny --resume
tokvid train codec/ucf101-128 --dry-run

Codecs and language models are measured: the figures are printed as JSON and kept in metrics.json in the run's folder.
Where the data has an oracle (sprites) it judges reconstructions, or clips drawn from held-out captions as the recipe's
evaluation says.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokvid.atomic import write_text
from tokvid.cli.clips import load_held_out, load_splits, tell
from tokvid.cli.dry_run import dry_run
from tokvid.cli.judging import generate, judge_reconstructions
from tokvid.cli.progress import counted
from tokvid.data.clips import ClipArray, SpriteDataConfig, materialise, open_clips, open_splits
from tokvid.errors import ConfigError, did_you_mean
from tokvid.processes import is_main_process
from tokvid.provenance import provenance
from tokvid.recipe import load_recipe
from tokvid.run_lock import check_output

if TYPE_CHECKING:
    from tokvid_lm.head_training import HeadRecipe
    from tokvid_tokenizers.refiner_training import RefinerRecipe

TASKS = ("codec", "refiner", "lm", "head")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``RECIPE [--resume] [--a.b=value ...]``."""
    parser.add_argument("recipe", metavar="RECIPE", help="a file, or a name of 'tokvid recipes list'")
    parser.add_argument("--dry-run", action="store_true", help="two tiny steps of it, which write nothing")
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint of the output")


def run(arguments: argparse.Namespace) -> int:
    """Train, print where the result is and how good it is."""
    data = load_recipe(arguments.recipe, arguments.overrides)
    task = data.get("task")
    if task not in TASKS:
        raise ConfigError(f"'task' is {task!r}: {did_you_mean(str(task), TASKS)}")
    train = {"codec": _codec, "refiner": _refiner, "lm": _lm, "head": _head}
    # Libraries under a training (deepspeed when it is imported) say things on stdout, which is for the figures alone.
    with contextlib.redirect_stdout(sys.stderr):
        figures = dry_run(data) if arguments.dry_run else train[task](data, resume=arguments.resume)
    if is_main_process():
        print(json.dumps(figures, indent=2))
    return 0


def _codec(data: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    from tokvid.config import from_mapping
    from tokvid_tokenizers.training import train_codec
    from tokvid_tokenizers.training_config import CodecRecipe

    recipe = from_mapping(CodecRecipe, data)
    check_output(recipe.output, resume=resume)  # before clips are loaded
    load = load_splits if recipe.training.clips == "memory" else load_held_out
    clips, held_out = load(recipe.data, workers=recipe.training.loading_workers)
    trained = train_codec(recipe, clips, held_out, resume=resume)
    figures: dict[str, Any] = trained.evaluation.figures()
    if not is_main_process():
        return figures
    figures |= judge_reconstructions(recipe.data, held_out.captions, trained.reconstructions.pictures)
    _keep(recipe.output, figures, recipe.seed)
    return {"codec": str(trained.folder), **figures}


def _refiner(data: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    from tokvid.config import from_mapping
    from tokvid_tokenizers.refiner_training import CODEC_FOLDER, RefinerRecipe, train_refiner

    recipe = from_mapping(RefinerRecipe, data)
    head = train_refiner(recipe, _train_clips(recipe, resume=resume), resume=resume).head
    assert head is not None
    figures = {"refiner_parameters": sum(parameter.numel() for parameter in head.parameters())}
    _keep(recipe.output, figures, recipe.seed)
    return {"codec": str(Path(recipe.output) / CODEC_FOLDER), **figures}


def _lm(data: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    from tokvid.config import from_mapping
    from tokvid_lm.training import train_lm
    from tokvid_lm.training_config import LMRecipe, ShardDataConfig

    recipe = from_mapping(LMRecipe, data)
    if isinstance(recipe.data, ShardDataConfig):
        trained = train_lm(recipe, resume=resume)
    else:
        # Not loaded: a language model learns from codes, and frames are needed only until they are encoded.
        clips, held_out = open_splits(recipe.data)
        tell(clips, held_out)
        with counted("encoding") as progress:
            trained = train_lm(recipe, clips, held_out, resume=resume, progress=progress)
    figures: dict[str, Any] = trained.losses.figures()
    if not is_main_process():
        return figures
    if isinstance(recipe.data, SpriteDataConfig) and recipe.sampling:
        figures |= generate(trained, recipe).figures
    _keep(recipe.output, figures, recipe.seed)
    return {"model": str(trained.folder), **figures}


def _head(data: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    from tokvid.config import from_mapping
    from tokvid_lm.head_training import LM_FOLDER, HeadRecipe, train_head

    recipe = from_mapping(HeadRecipe, data)
    head = train_head(recipe, _train_clips(recipe, resume=resume), resume=resume).diffusion_head
    assert head is not None
    figures = {"head_parameters": sum(parameter.numel() for parameter in head.parameters())}
    _keep(recipe.output, figures, recipe.seed)
    return {"model": str(Path(recipe.output) / LM_FOLDER), **figures}


def _train_clips(recipe: RefinerRecipe | HeadRecipe, *, resume: bool) -> ClipArray:
    """The clips of a head, loaded when it is sure that it may be trained."""
    check_output(recipe.output, resume=resume)
    with counted("train clips") as progress:
        return materialise(open_clips(recipe.data, "train"), progress=progress)


def _keep(output: str, figures: dict[str, Any], seed: int) -> None:
    """Write ``metrics.json``: the figures, and where they come from."""
    text = json.dumps({**figures, "provenance": provenance(seed)}, indent=2) + "\n"
    write_text(Path(output) / "metrics.json", text)
