"""What this machine can do, or what a video, codes, a codec or a video language model hold.

tokvid info                                   versions, processor threads, bf16, devices
tokvid info clip.mp4                          size, length, frame rate and metadata of a video
tokvid info codes.tokvid                      what a file of codes holds, and the bits a pixel takes in it
tokvid info codes                             a folder of code shards, every byte of which is checked
tokvid info preset:base                       a codec: parameters, strides, codebook, arithmetic
tokvid info runs/codec --size 17x256x256      the same of a saved codec, for a clip of TxHxW
tokvid info presets --measure                 a table of all presets; with --measure seconds and memory on this machine
tokvid info runs/lm                           a video language model: vocabulary, parameters, its codec
tokvid info tokvid-sprites-lm                 one that comes with tokvid
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokvid.codes_file import SUFFIX, CodesFile
from tokvid.config import to_mapping
from tokvid.errors import ConfigError, DataError
from tokvid.hub import CODEC_PREFIXES, local_path, shipped_models

# The size that published codecs are compared at.
SIZE = "17x128x128"
CONFIG, VIDEO_LM = "config.json", "video_lm.json"
SHARDS, UNFINISHED_SHARDS = "code_shards.json", "unfinished/plan.json"
PRESETS = "presets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``[WHAT] [--size TxHxW] [--measure] [--json]``."""
    parser.add_argument(
        "what",
        nargs="?",
        metavar="WHAT",
        help="a video file, preset:NAME, presets (all of them), or the folder of a codec, of a video language model or"
        " of code shards; nothing: this machine",
    )
    parser.add_argument("--size", metavar="TxHxW", help=f"frames, height and width for a codec (default {SIZE})")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="of a codec: encode and decode one clip of that size, seconds and memory (takes up to half a minute each)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print what is known about ``arguments.what``."""
    facts = describe(arguments.what, arguments.size, measured=arguments.measure)
    if arguments.json:
        print(json.dumps(facts, indent=2))
    elif PRESETS in facts:
        from tokvid.cli.info_presets import table

        print("\n".join(table(facts)))
    else:
        print("\n".join(_lines(facts)))
    return 0


def describe(what: str | None, size: str | None = None, *, measured: bool = False) -> dict[str, Any]:
    """The facts about ``what``, by its kind: each kind is one branch and one function, imported when it is used.

    ``size`` and ``measured`` are for codecs alone; for anything else :class:`ConfigError`.
    """
    if what is not None:
        what = str(local_path(what))
    is_video_lm = what is not None and (Path(what) / VIDEO_LM).is_file()
    is_codec = what is not None and (what.startswith(CODEC_PREFIXES) or (Path(what) / CONFIG).is_file())
    # A file or folder of that name goes first.
    is_table = what == PRESETS and not Path(what).exists()
    if not (is_video_lm or is_codec or is_table):
        for option, given in (("--size", size is not None), ("--measure", measured)):
            if given:
                raise ConfigError(f"{option} is for a codec, and {what or 'this machine'} is none; {_mend(what)}")
    if what is None:
        return _machine()
    if is_video_lm:
        from tokvid.cli.info_model import describe_video_lm

        return describe_video_lm(Path(what), size or SIZE, measured=measured)
    if is_codec:
        from tokvid.cli.info_model import describe_codec

        return describe_codec(what, size or SIZE, measured=measured)
    if is_table:
        from tokvid.cli.info_presets import describe_presets

        return describe_presets(size or SIZE, measured=measured)
    if Path(what).suffix.lower() == SUFFIX:
        return _codes(Path(what))
    if any((Path(what) / name).is_file() for name in (SHARDS, UNFINISHED_SHARDS)):
        from tokvid.cli.info_shards import describe_shards

        return describe_shards(Path(what))
    if Path(what).is_dir():
        raise DataError(
            f"{what} holds neither a codec ({CONFIG}) nor a video language model ({VIDEO_LM}) nor code shards"
            f" ({SHARDS})"
        )
    if not Path(what).exists():
        raise DataError(
            f"there is no file or folder {what!r}, and with tokvid comes {', '.join(shipped_models())}: check the name"
        )
    return _video(Path(what))


def _mend(what: str | None) -> str:
    from tokvid_tokenizers.presets import PRESETS as NAMES

    return f"did you mean preset:{what}?" if what in NAMES else "leave it out"


def _machine() -> dict[str, Any]:
    from tokvid.provenance import versions
    from tokvid.runtime import describe as describe_machine

    return {"versions": versions(), **describe_machine()}


def _video(path: Path) -> dict[str, Any]:
    from tokvid.video import probe_video

    facts = dataclasses.asdict(probe_video(path))
    return {"file": str(path), **facts, "metadata": {key: _parsed(value) for key, value in facts["metadata"].items()}}


def _parsed(value: str) -> Any:
    """What a text of metadata holds, if that is JSON with names, as what made a clip is."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, dict) else value


def _codes(path: Path) -> dict[str, Any]:
    file = CodesFile(path)
    facts, size = file.facts, path.stat().st_size
    height, width = facts.cells
    return {
        "file": str(path),
        "grid": f"{file.latent_frames}x{height}x{width}",
        "duration_s": facts.num_frames / facts.fps,
        "bits_a_code": facts.bits,
        "bytes": size,
        # Of the whole file, its head included.
        "bits_per_pixel": 8 * size / (facts.num_frames * facts.height * facts.width),
        **to_mapping(facts),
    }


def _lines(facts: Mapping[str, Any], indent: str = "") -> list[str]:
    """Nested facts as aligned text lines."""
    width = max((len(str(key)) for key in facts), default=0)
    lines: list[str] = []
    for key, value in facts.items():
        # Deeper keys are names of packages and of metadata, which keep their spelling.
        label = str(key) if indent else str(key).replace("_", " ")
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{label}", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{label:<{width}}  {_text(value)}")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None or value == {} else str(value)
