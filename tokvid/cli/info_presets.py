"""The table of ``tokvid info presets``: what every codec that needs no file costs at one size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokvid.cli.info_model import describe_codec
from tokvid.cli.progress import counted
from tokvid.errors import ModelError

_WORDS = ("preset", "kind")
"""Columns that are not numbers."""


def describe_presets(size: str, *, measured: bool) -> dict[str, Any]:
    """The facts of ``tokvid info preset:NAME`` of every preset, by its name."""
    from tokvid_tokenizers.presets import PRESETS

    names, presets = [f"preset:{name}" for name in PRESETS], {}
    with counted("presets", "presets") as progress:
        for number, name in enumerate(names):
            progress(number, len(names))
            try:
                presets[name] = describe_codec(name, size, measured=measured)
            except ModelError as error:
                raise ModelError(f"{name} at {size}: {error}") from error
    return {"size": size, "presets": presets}


def table(facts: Mapping[str, Any]) -> list[str]:
    """The lines of a table of what :func:`describe_presets` gave."""
    rows = [_row(name, codec) for name, codec in facts["presets"].items()]
    widths = {title: max(len(title), *(len(row[title]) for row in rows)) for title in rows[0]}
    lines = [f"one clip of {facts['size']}"]
    for row in ({title: title for title in widths}, *rows):
        cells = (row[title].ljust(w) if title in _WORDS else row[title].rjust(w) for title, w in widths.items())
        lines.append("  ".join(cells))
    measured = next(iter(facts["presets"].values())).get("measured")
    if measured is not None:
        lines.append(f"measured on {measured['device']}, threads: {measured['threads']}, {measured['dtype']}")
    return lines


def _row(name: str, codec: Mapping[str, Any]) -> dict[str, str]:
    row = {
        "preset": name.partition(":")[2],
        "kind": codec["kind"],
        "strides": f"{codec['temporal_stride']}x{codec['spatial_stride']}x{codec['spatial_stride']}",
        "M params": f"{codec['parameters'] / 1e6:.1f}",
        "encode GMAC": f"{codec['gmac']['encode']:.2f}",
        "decode GMAC": f"{codec['gmac']['decode']:.2f}",
        "codes": str(codec["codes"]),
    }
    measured = codec.get("measured")
    if measured is None:
        return row
    memory = measured["peak_memory_mb"]
    return row | {
        "encode s": f"{measured['encode_seconds']:.3f}",
        "decode s": f"{measured['decode_seconds']:.3f}",
        "peak MB": "unknown" if memory is None else f"{memory:.0f}",
    }
