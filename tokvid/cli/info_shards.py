"""The facts of a folder of code shards for ``tokvid info``, every byte of which is read for them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokvid.cli.progress import counted
from tokvid.config import to_mapping
from tokvid.data.code_shards import verify


def describe_shards(folder: Path) -> dict[str, Any]:
    """What each split holds and of what it was made; an error names the first file that is not as it was written."""
    with counted("check", "shards") as progress:
        facts, splits = verify(folder, progress=progress)
    return {
        "code_shards": str(folder),
        "format_version": facts.format_version,
        **to_mapping(facts.codec),
        "splits": {
            split: asdict(summary) | {"bits_per_pixel": summary.bits_per_pixel} for split, summary in splits.items()
        },
        "data": facts.data,
        "shard_clips": facts.shard_clips,
        "skipped": {item.name: item.reason for item in facts.skipped},
        "checked": "every shard is whole, its clips agree with themselves and with the codec",
    }
