"""What this machine can do, or what a file holds.

tokvid info              versions, processor threads, bf16, devices
tokvid info clip.mp4     size, length, frame rate and metadata of a video
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``[WHAT] [--json]``."""
    parser.add_argument("what", nargs="?", metavar="FILE", help="a video file; nothing: this machine")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print what is known about ``arguments.what``."""
    facts = describe(arguments.what)
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        print("\n".join(_lines(facts)))
    return 0


def describe(what: str | None) -> dict[str, Any]:
    """The facts about ``what``, by its kind: each kind is one branch and one function, imported when it is used."""
    if what is None:
        return _machine()
    return _video(Path(what))


def _machine() -> dict[str, Any]:
    from tokvid.provenance import versions
    from tokvid.runtime import describe as describe_machine

    return {"versions": versions(), **describe_machine()}


def _video(path: Path) -> dict[str, Any]:
    from tokvid.video import probe_video

    facts = probe_video(path)
    return {"file": str(path), **dataclasses.asdict(facts)}


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
