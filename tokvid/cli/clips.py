"""Loading the clips of a recipe for a verb: with a bar, and with what was skipped named on stderr."""

from __future__ import annotations

import sys

from tokvid.cli.progress import counted
from tokvid.data.clips import ClipArray, DataConfig, Split, materialise, open_clips

_NAMED = 5  # of the skipped clips; the rest is counted


def load_splits(config: DataConfig) -> tuple[ClipArray, ClipArray]:
    """Training and held-out clips in memory. stdout is left to the verb's own result."""
    return _load(config, "train"), _load(config, "held_out")


def _load(config: DataConfig, split: Split) -> ClipArray:
    with counted(f"{split} clips") as progress:
        clips = materialise(open_clips(config, split), progress=progress)
    if clips.skipped:
        names = ", ".join(name for name, _ in clips.skipped[:_NAMED])
        more = ", ..." if len(clips.skipped) > _NAMED else ""
        print(f"{len(clips.skipped)} skipped in {split}: {names}{more}", file=sys.stderr)
    return clips
