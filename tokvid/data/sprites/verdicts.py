"""Verdicts on many clips: what the oracle sees in each, held against what its caption names, and counted.

Where the clips come from (a model, a codec, the sprite world itself) is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tokvid.data.sprites.agreement import Agreement, agreement
from tokvid.data.sprites.captions import parse_caption
from tokvid.data.sprites.oracle import Oracle, Sight
from tokvid.metrics.proportion import Proportion


@dataclass(frozen=True, kw_only=True)
class JudgedClips:
    """What the oracle saw in each clip, and whether that is what the caption names.

    ``background`` counts only captions that name one.
    """

    sights: tuple[Sight, ...]
    verdicts: tuple[Agreement, ...]

    @property
    def proportions(self) -> dict[str, Proportion]:
        """``sprite``, ``direction``, ``background`` (if any caption names one) and ``all``."""
        named = [v.background for v in self.verdicts if v.background is not None]
        columns = {
            "sprite": [v.sprite for v in self.verdicts],
            "direction": [v.motion for v in self.verdicts],
            "all": [v.all for v in self.verdicts],
        }
        columns |= {"background": named} if named else {}
        return {name: Proportion(right=sum(column), count=len(column)) for name, column in columns.items()}

    def figures(self) -> dict[str, Any]:
        """For ``metrics.json``."""
        return {name: part.figures() for name, part in self.proportions.items()}


def judge_clips(oracle: Oracle, captions: Sequence[str], frames: npt.NDArray[np.uint8]) -> JudgedClips:
    """Let ``oracle`` look at clips uint8 ``[N,T,H,W,3]`` and compare with what their captions name."""
    sights = tuple(oracle.look(frames))
    verdicts = tuple(agreement(parse_caption(caption), sight) for caption, sight in zip(captions, sights, strict=True))
    return JudgedClips(sights=sights, verdicts=verdicts)


def describe(sight: Sight) -> str:
    """What the oracle saw, in a line."""
    seen = [f"{found.sprite or 'something'} {found.motion or 'moving'}" for found in sight.sprites]
    return f"{' and '.join(seen) or 'no sprite'}, {sight.background or 'no background'}"
