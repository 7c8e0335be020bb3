"""Turn videos into codes: a file into a .tokvid file, a folder into a folder of them with the tree kept.

tokvid encode long.mp4 long.tokvid --codec runs/demo/codec/codec
tokvid encode videos codes --codec runs/demo/codec/codec

Videos of any length need memory for a few frames only. Stopped and run again, the command goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokvid.cli.file_pairs import FilePair, pairs
from tokvid.cli.generate import parse_size
from tokvid.cli.progress import counted
from tokvid.codes_file import SUFFIX
from tokvid.data.folder_scan import VIDEO_SUFFIXES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``VIDEO FILE.tokvid --codec CODEC``."""
    parser.add_argument("input", metavar="IN", help="a video, or a folder of videos")
    parser.add_argument("output", metavar="OUT", help=f"the {SUFFIX} file, or the folder, to write")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The codec, and how videos are read: what encoding and reconstructing share."""
    parser.add_argument(
        "--codec", required=True, metavar="CODEC", help="a codec's folder, org/name on the Hub, or preset:NAME"
    )
    parser.add_argument("--fps", type=float, help="frames a second to read at (default: the video's own)")
    parser.add_argument("--size", metavar="HxW", help="resize and crop the centre (default: the video's own size)")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite files that exist")


def run(arguments: argparse.Namespace) -> int:
    """Encode every video, one line each."""
    found = pairs(arguments.input, arguments.output, VIDEO_SUFFIXES, SUFFIX, force=arguments.force)
    size = parse_size(arguments.size) if arguments.size else None
    from tokvid.provenance import provenance
    from tokvid_tokenizers import load_codec
    from tokvid_tokenizers.files import encode_file

    codec = load_codec(arguments.codec)

    def encode(pair: FilePair) -> str:
        with counted(f"encode {pair.source.name}", "frames") as progress:
            facts = encode_file(
                codec,
                pair.source,
                pair.target,
                fps=arguments.fps,
                size=size,
                made_by={"source": pair.source.name, "codec": Path(arguments.codec).name, **provenance()},
                progress=progress,
            )
        height, width = (side * facts.spatial_stride for side in facts.cells)
        padded = "" if (height, width) == (facts.height, facts.width) else f", padded to {height}x{width}"
        return f"{facts.num_frames} frames of {facts.height}x{facts.width}{padded}"

    return found.each(encode)
