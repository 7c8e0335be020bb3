"""Put a codec, a language model, adapters or code shards on the Hugging Face Hub, with a card of what was measured.

tokvid push runs/sprites-tiny/codec/codec org/name
tokvid push runs/sprites-tiny/lm/lm org/name --private --license mit
tokvid push runs/smollm2-extend/adapters org/name --base org/the-model
tokvid push shards org/name

Shards go there as a data set, after all of them were read. The card of a model is rendered from the run that made it:
the folder around it (recipe.json, metrics.json), or --run. The token is the one that 'hf auth login' has kept, or
HF_TOKEN's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tokvid.errors import ModelError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``FOLDER ORG/NAME [--run RUN | --not-evaluated] [--base X] [--license X] [--revision X] [--private]``."""
    parser.add_argument(
        "folder", metavar="FOLDER", help="of a codec, a language model or code shards, as tokvid writes them"
    )
    parser.add_argument("name", metavar="ORG/NAME", help="the repository, which is made where there is none")
    told = parser.add_mutually_exclusive_group()
    told.add_argument("--run", metavar="RUN", help="the output folder of its training (default: the one around FOLDER)")
    told.add_argument("--not-evaluated", action="store_true", help="without numbers, which the card will say")
    parser.add_argument("--base", metavar="ORG/NAME", help="what the Hub calls the model that adapters are of")
    parser.add_argument("--license", metavar="X", help="of the weights, as the Hub calls it (apache-2.0, say)")
    parser.add_argument("--revision", metavar="X", help="a branch, which is made where there is none (default main)")
    parser.add_argument("--private", action="store_true", default=None, help="where the repository is made")


def run(arguments: argparse.Namespace) -> int:
    """Push, and print the address of the commit."""
    from tokvid.data.code_shards import is_code_shards, push_shards
    from tokvid.hub_card import read_run

    if is_code_shards(arguments.folder):
        if arguments.run or arguments.not_evaluated or arguments.license:
            raise ModelError("code shards have a card of their own: leave --run, --not-evaluated and --license out")
        print(push_shards(arguments.folder, arguments.name, revision=arguments.revision, private=arguments.private))
        return 0
    push = _pushing(Path(arguments.folder), arguments.base)
    of_run = None if arguments.not_evaluated else read_run(arguments.run or Path(arguments.folder).parent)
    if of_run is not None and of_run.recipe.get("task") == "refiner":
        raise ModelError(
            "this is the run of a refiner, and a card says how good a codec is: name the run of its codec with --run,"
            " or say --not-evaluated"
        )
    print(
        push(
            arguments.name,
            run=of_run,
            license=arguments.license,
            revision=arguments.revision,
            private=arguments.private,
        )
    )
    return 0


def _pushing(folder: Path, base: str | None) -> Callable[..., str]:
    """What pushes the model in ``folder``, which is loaded: a push is also a check that it can be."""
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder} to push")
    if (folder / "adapter_config.json").is_file():
        from tokvid_lm.adapter_push import push_adapters

        return partial(push_adapters, folder, base=base)
    if base is not None:
        raise ModelError(f"{folder} holds no adapters: leave --base out")
    if (folder / "video_lm.json").is_file():
        from tokvid_lm import VideoLM

        return VideoLM.from_pretrained(folder).push_to_hub
    from tokvid.head_files import has_head
    from tokvid_tokenizers import VideoCodec
    from tokvid_tokenizers.refiner import REFINER, Refiner

    codec = VideoCodec.from_pretrained(folder)
    refiner = Refiner.load(folder, codec) if has_head(folder, REFINER) else None
    return partial(codec.push_to_hub, refiner=refiner)
