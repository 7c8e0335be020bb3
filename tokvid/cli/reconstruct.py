"""Send videos through a codec and back: what is left of them, as a file or a folder with the tree kept.

tokvid reconstruct clip.mp4 clip-again.mp4 --codec runs/demo/codec/codec
tokvid reconstruct clip.mp4 clip-again.mp4 --codec runs/sprites-refine/codec/codec --refine
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from tokvid.cli import encode
from tokvid.cli.decode import add_refine
from tokvid.cli.file_pairs import FilePair, pairs
from tokvid.cli.generate import parse_size
from tokvid.cli.progress import counted
from tokvid.codes_file import SUFFIX
from tokvid.data.folder_scan import VIDEO_SUFFIXES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``VIDEO VIDEO --codec CODEC``."""
    parser.add_argument("input", metavar="IN", help="a video, or a folder of videos")
    parser.add_argument("output", metavar="OUT", help="the video (.mp4), or the folder, to write")
    encode.add_options(parser)
    add_refine(parser)


def run(arguments: argparse.Namespace) -> int:
    """Reconstruct every video, one line each."""
    found = pairs(arguments.input, arguments.output, VIDEO_SUFFIXES, ".mp4", force=arguments.force)
    size = parse_size(arguments.size) if arguments.size else None
    tiles = encode.tile_options(arguments)
    from tokvid.provenance import provenance
    from tokvid.runtime import default_device
    from tokvid_tokenizers import load_codec
    from tokvid_tokenizers.files import decode_file, encode_file
    from tokvid_tokenizers.refiner import Refiner

    codec = load_codec(arguments.codec, device=default_device())
    refiner = Refiner.load(arguments.codec, codec) if arguments.refine else None

    def reconstruct(pair: FilePair) -> str:
        made_by = {
            "reconstruction_of": pair.source.name,
            "codec": codec.codec_id,
            "refined": None if refiner is None else refiner.drawn_by(),
            **provenance(),
        }
        with tempfile.TemporaryDirectory() as folder:
            codes = Path(folder) / f"codes{SUFFIX}"
            with counted(f"encode {pair.source.name}", "frames") as progress:
                facts = encode_file(codec, pair.source, codes, fps=arguments.fps, size=size, **tiles, progress=progress)
            size_of_file = codes.stat().st_size
            with counted(f"decode {pair.source.name}", "frames") as progress:
                metadata = {"tokvid": json.dumps(made_by)}
                decode_file(codec, codes, pair.target, **tiles, refiner=refiner, metadata=metadata, progress=progress)
        return f"{encode.clip_of(facts)}, through a .tokvid file of {size_of_file:,} bytes"

    return found.each(reconstruct)
