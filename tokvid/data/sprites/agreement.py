"""Whether a clip shows what its caption names: the caption's facts against the oracle's sight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from tokvid.data.sprites.captions import CaptionFacts
from tokvid.data.sprites.oracle import SeenSprite, Sight


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What of a caption a clip shows.

    ``sprite``: every named sprite was seen. ``motion``: every named motion was seen, on its own sprite where
    that was recognised, else on another one: the direction of a sprite too garbled to be named still counts
    here. ``background`` is None where the caption names none. ``all``: nothing the caption names is missing.
    """

    sprite: bool
    motion: bool
    background: bool | None
    all: bool


def agreement(facts: CaptionFacts, sight: Sight) -> Agreement:
    """Hold the facts of a caption against a sight; what the caption does not name cannot be wrong."""
    seen_names = {seen.sprite for seen in sight.sprites}
    sprite = all(name in seen_names for name, _ in facts.sprites)
    motion = _motions_agree(facts.sprites, sight.sprites)
    background = None if facts.background is None else facts.background == sight.background
    return Agreement(
        sprite=sprite, motion=motion, background=background, all=sprite and motion and background is not False
    )


def _motions_agree(named: Sequence[tuple[str, str | None]], seen: Sequence[SeenSprite]) -> bool:
    left_over = list(seen)
    wanted = []
    for name, motion in named:
        own = next((one for one in left_over if one.sprite == name), None)
        if own is None:
            wanted.append(motion)
            continue
        left_over.remove(own)
        if motion not in (None, own.motion):
            return False
    return any(
        all(motion in (None, one.motion) for motion, one in zip(wanted, chosen, strict=True))
        for chosen in permutations(left_over, len(wanted))
    )
