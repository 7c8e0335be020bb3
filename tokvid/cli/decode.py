"""Turn codes back into videos: a .tokvid file into a video, a folder into a folder of them with the tree kept.

tokvid decode long.tokvid long-again.mp4 --codec runs/demo/codec/codec
"""

from __future__ import annotations

import argparse
import json

from tokvid.cli.encode import add_tile_options, tile_options
from tokvid.cli.file_pairs import FilePair, pairs
from tokvid.cli.progress import Pace, counted
from tokvid.codes_file import SUFFIX


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``FILE.tokvid VIDEO --codec CODEC``."""
    parser.add_argument("input", metavar="IN", help=f"a {SUFFIX} file, or a folder of them")
    parser.add_argument("output", metavar="OUT", help="the video (.mp4), or the folder, to write")
    parser.add_argument(
        "--codec", required=True, metavar="CODEC", help="the codec that encoded it: a folder, org/name, or preset:NAME"
    )
    add_tile_options(parser)
    add_refine(parser)
    parser.add_argument("-f", "--force", action="store_true", help="overwrite files that exist")


def add_refine(parser: argparse.ArgumentParser) -> None:
    """``--refine``."""
    parser.add_argument(
        "--refine", action="store_true", help="draw on the frames what decoding lost, with the codec's refiner"
    )


def run(arguments: argparse.Namespace) -> int:
    """Decode every file, one line each."""
    found = pairs(arguments.input, arguments.output, {SUFFIX}, ".mp4", force=arguments.force)
    tiles = tile_options(arguments)
    from tokvid.provenance import provenance
    from tokvid.runtime import default_device
    from tokvid_tokenizers import load_codec
    from tokvid_tokenizers.files import decode_file
    from tokvid_tokenizers.refiner import Refiner

    codec = load_codec(arguments.codec, device=default_device())
    refiner = Refiner.load(arguments.codec, codec) if arguments.refine else None

    def decode(pair: FilePair) -> str:
        refined = None if refiner is None else refiner.drawn_by()
        made_by = {"codes": pair.source.name, "codec": codec.codec_id, "refined": refined, **provenance()}
        with counted(f"decode {pair.source.name}", "frames") as progress:
            pace = Pace(progress)
            facts = decode_file(
                codec,
                pair.source,
                pair.target,
                **tiles,
                refiner=refiner,
                metadata={"tokvid": json.dumps(made_by)},
                progress=pace,
            )
        return f"{facts.num_frames} frames of {facts.height}x{facts.width}, {pace.per_second:.3g} frames/s"

    return found.each(decode)
