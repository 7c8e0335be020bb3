"""Turn videos into codes: a file into a .tokvid file, a folder into a folder of them with the tree kept.

tokvid encode long.mp4 long.tokvid --codec runs/demo/codec/codec
tokvid encode videos codes --codec runs/demo/codec/codec

Videos of any length need memory for a few frames only, with --tile 512x512 for a part of each at a time: the codes are
the same. Stopped and run again, the command goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypedDict

from tokvid.cli.file_pairs import FilePair, pairs
from tokvid.cli.generate import parse_size
from tokvid.cli.progress import Pace, counted
from tokvid.codes_file import SUFFIX, CodesFacts
from tokvid.data.folder_scan import VIDEO_SUFFIXES


class TileOptions(TypedDict):
    """``--tile`` in pixels (H, W) and ``--halo`` in cells."""

    tile: tuple[int, int] | None
    halo: int | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``VIDEO FILE.tokvid --codec CODEC``."""
    parser.add_argument("input", metavar="IN", help="a video, or a folder of videos")
    parser.add_argument("output", metavar="OUT", help=f"the {SUFFIX} file, or the folder, to write")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The codec, and how videos are read: what encoding and reconstructing share."""
    parser.add_argument(
        "--codec",
        required=True,
        metavar="CODEC",
        help="a codec's folder, org/name on the Hub, vidtok:FOLDER or preset:NAME",
    )
    parser.add_argument("--fps", type=float, help="frames a second to read at (default: the video's own)")
    parser.add_argument("--size", metavar="HxW", help="resize and crop the centre (default: the video's own size)")
    add_tile_options(parser)
    parser.add_argument("-f", "--force", action="store_true", help="overwrite files that exist")


def add_tile_options(parser: argparse.ArgumentParser) -> None:
    """How large frames are computed in parts: what decoding has too."""
    parser.add_argument(
        "--tile", metavar="HxW", help="compute large frames in tiles of so many pixels (default: whole)"
    )
    parser.add_argument(
        "--halo", type=int, metavar="CELLS", help="around every tile (default: no seams); fewer are faster, with seams"
    )


def tile_options(arguments: argparse.Namespace) -> TileOptions:
    """What :func:`add_tile_options` was given, as the functions for files take it."""
    return {"tile": parse_size(arguments.tile) if arguments.tile else None, "halo": arguments.halo}


def run(arguments: argparse.Namespace) -> int:
    """Encode every video, one line each."""
    found = pairs(arguments.input, arguments.output, VIDEO_SUFFIXES, SUFFIX, force=arguments.force)
    size = parse_size(arguments.size) if arguments.size else None
    tiles = tile_options(arguments)
    from tokvid.provenance import provenance
    from tokvid.runtime import default_device
    from tokvid_tokenizers import load_codec
    from tokvid_tokenizers.files import encode_file

    codec = load_codec(arguments.codec, device=default_device())

    def encode(pair: FilePair) -> str:
        with counted(f"encode {pair.source.name}", "frames") as progress:
            pace = Pace(progress)
            facts = encode_file(
                codec,
                pair.source,
                pair.target,
                fps=arguments.fps,
                size=size,
                **tiles,
                made_by={"source": pair.source.name, "codec": Path(arguments.codec).name, **provenance()},
                progress=pace,
            )
        return f"{clip_of(facts)}, {pace.per_second:.3g} frames/s"

    return found.each(encode)


def clip_of(facts: CodesFacts) -> str:
    """What was encoded, for a line of the output: frames, their size, and what that was padded to."""
    height, width = (side * facts.spatial_stride for side in facts.cells)
    padded = "" if (height, width) == (facts.height, facts.width) else f", padded to {height}x{width}"
    return f"{facts.num_frames} frames of {facts.height}x{facts.width}{padded}"
