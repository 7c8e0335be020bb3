"""From nothing to generated video: trains a codec and a language model on this machine and shows what they do.

tokvid demo                 the sprite world, about ten minutes on two cores
tokvid demo --fast          the same path in a minute; the quality is not judged
tokvid demo --data FOLDER   your own videos and captions
tokvid demo --pretrained    nothing is trained: what the model that comes with tokvid can do, in half a minute
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokvid.cli.stages import METRICS_FILE, STAGES_FILE
from tokvid.errors import DataError
from tokvid.recipe import load_recipe

if TYPE_CHECKING:
    from tokvid_lm.training_config import LMRecipe
    from tokvid_tokenizers.training_config import CodecRecipe

CODEC_RECIPE = "codec/sprites-tiny"
LM_RECIPE = "lm/sprites-tiny"
# The fast demo runs every stage at a size that proves the path and says nothing about quality.
FAST_CODEC = (
    "data.train_clips=256",
    "data.held_out_clips=64",
    "training.steps=40",
    "training.warmup_steps=5",
    "training.validate_every=20",
)
FAST_LM = (
    "data.train_clips=256",
    "data.held_out_clips=64",
    "training.steps=30",
    "training.curriculum=[]",
    "training.warmup_steps=5",
    "training.validate_every=15",
    "evaluation.clips=16",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``[--pretrained | --fast] [--data FOLDER] [--output FOLDER] [-f]``."""
    parser.add_argument("--pretrained", action="store_true", help="show the model that comes with tokvid")
    parser.add_argument("--fast", action="store_true", help="tiny runs: every stage, in about a minute")
    parser.add_argument("--data", metavar="FOLDER", help="videos with captions, instead of the sprite world")
    parser.add_argument("--output", metavar="FOLDER", help="default: runs/demo, with --fast runs/demo-fast, and so on")
    parser.add_argument("-f", "--force", action="store_true", help="replace a finished demo there")


def run(arguments: argparse.Namespace) -> int:
    """Train, measure, draw, and print where everything is."""
    began = time.perf_counter()  # before torch is imported, which takes seconds
    if arguments.pretrained and (arguments.data or arguments.fast):
        raise DataError("--pretrained shows a model of the sprite world: leave --data and --fast out")
    default = "runs/demo" + "-data" * bool(arguments.data) + "-fast" * arguments.fast
    default += "-pretrained" * arguments.pretrained
    output = Path(arguments.output or default)
    check_replaceable(output, force=arguments.force)
    if arguments.pretrained:
        from tokvid.cli.demo_pretrained import run_pretrained

        return run_pretrained(output, began=began)
    from tokvid.cli.demo_run import run_demo

    codec_recipe, lm_recipe = recipes(fast=arguments.fast, data=arguments.data, output=output)
    return run_demo(codec_recipe, lm_recipe, output=output, fast=arguments.fast, began=began)


def check_replaceable(output: Path, *, force: bool) -> None:
    """Raise :class:`DataError` for a finished demo, which took minutes; one that was interrupted goes on."""
    if (output / METRICS_FILE).exists() and not (output / STAGES_FILE).exists() and not force:
        raise DataError(f"{output} holds a finished demo: give another --output, or -f to replace it")
    others = sorted(p.name for p in output.glob("generated/*") if not re.fullmatch(r"\d+\.mp4", p.name))
    if others:
        raise DataError(f"{output / 'generated'} holds more than a demo's videos ({others[0]}): move it away")


def recipes(*, fast: bool, data: str | None, output: Path) -> tuple[CodecRecipe, LMRecipe]:
    """The two recipes of a demo: the shipped ones, with the output, the data and the speed that were asked for."""
    from tokvid.config import from_mapping
    from tokvid_lm.training_config import LMRecipe
    from tokvid_tokenizers.training_config import CodecRecipe

    codec_folder, lm_folder = output / "codec", output / "lm"
    codec: dict[str, Any] = load_recipe(CODEC_RECIPE, FAST_CODEC if fast else ())
    lm: dict[str, Any] = load_recipe(LM_RECIPE, FAST_LM if fast else ())
    if data is not None:
        size, num_frames = codec["data"]["size"], codec["data"]["num_frames"]
        codec["data"] = lm["data"] = {"kind": "folder", "path": data, "size": size, "num_frames": num_frames}
    codec["output"], lm["output"], lm["codec"] = str(codec_folder), str(lm_folder), str(codec_folder / "codec")
    return from_mapping(CodecRecipe, codec), from_mapping(LMRecipe, lm)
