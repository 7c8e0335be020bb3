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
from tokvid.data.sprites.captions import CaptionFacts, parse_caption
from tokvid.data.sprites.oracle import Oracle, Sight
from tokvid.errors import DataError
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


@dataclass(frozen=True, kw_only=True)
class JudgedCaptions:
    """In how many captions the same sprites are named, with the same motions, and both; ``background`` of those whose
    original names one.
    """

    proportions: dict[str, Proportion]

    def figures(self) -> dict[str, Any]:
        """For ``evaluation.json``."""
        return {name: part.figures() for name, part in self.proportions.items()}


def judge_captions(captions: Sequence[str], others: Sequence[str]) -> JudgedCaptions:
    """Compare ``others`` with the ``captions`` of the same clips; what cannot be read is wrong."""
    rows = [_same_facts(parse_caption(one), other) for one, other in zip(captions, others, strict=True)]
    columns: dict[str, list[bool]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return JudgedCaptions(
        proportions={name: Proportion(right=sum(values), count=len(values)) for name, values in columns.items()}
    )


def _same_facts(facts: CaptionFacts, other: str) -> dict[str, bool]:
    try:
        said = parse_caption(other)
    except DataError:
        said = CaptionFacts(sprites=(), background=None)
    sprite = sorted(name for name, _ in facts.sprites) == sorted(name for name, _ in said.sprites)
    motion = sorted(str(motion) for _, motion in facts.sprites) == sorted(str(motion) for _, motion in said.sprites)
    verdict = {
        "sprite": sprite,
        "direction": motion,
        "both": sorted(facts.sprites, key=str) == sorted(said.sprites, key=str),
    }
    return verdict if facts.background is None else verdict | {"background": facts.background == said.background}


def describe(sight: Sight) -> str:
    """What the oracle saw, in a line."""
    seen = [f"{found.sprite or 'something'} {found.motion or 'moving'}" for found in sight.sprites]
    return f"{' and '.join(seen) or 'no sprite'}, {sight.background or 'no background'}"
