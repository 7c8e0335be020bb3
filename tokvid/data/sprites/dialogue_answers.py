"""What an answer in a dialogue of the sprite world is to be, and whether one is: by its words, and by what the oracle
saw in its clip. It writes no dialogues and knows no model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from tokvid.data.sprites.agreement import agreement
from tokvid.data.sprites.captions import CaptionFacts, parse_caption
from tokvid.data.sprites.oracle import Sight
from tokvid.errors import DataError

AnswerKind = Literal["describe", "again", "draw", "change", "continue", "question"]
KINDS: tuple[AnswerKind, ...] = get_args(AnswerKind)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a turn of the assistant is to say. ``facts`` are those of the clip that it draws or describes (``again``:
    one of an earlier turn), as far as they were said or seen; ``text`` is its wording; ``begins`` is where what is
    continued is in its first frame, the (y, x) of its centre in pixels."""

    kind: AnswerKind
    text: str
    facts: CaptionFacts | None = None
    begins: tuple[float, float] | None = None


def is_right(asked: Asked, text: str, sight: Sight | None) -> bool:
    """Whether an answer of ``text``, and of a clip of which the oracle had this ``sight`` (None: there was no clip),
    is what was asked for.

    A clip must show all that was named. A description must name all that is seen and nothing else; a question is
    answered in the words of the dialogues, by the letter.
    """
    if asked.kind == "question":
        return sight is None and text.strip() == asked.text
    assert asked.facts is not None
    if asked.kind not in ("describe", "again"):
        return sight is not None and agreement(asked.facts, sight).all
    if sight is not None:
        return False
    try:
        said = parse_caption(text)
    except DataError:
        return False
    return replace(said, sprites=tuple(sorted(said.sprites))) == replace(
        asked.facts, sprites=tuple(sorted(asked.facts.sprites))
    )


def gap_of(asked: Asked, sight: Sight) -> float | None:
    """How many pixels from where the last clip ended a continuation of it begins; None where that cannot be told."""
    (name, _), *_ = asked.facts.sprites if asked.facts is not None else ((None, None),)
    seen = next((seen for seen in sight.sprites if seen.sprite == name), None)
    if asked.begins is None or seen is None or not seen.path:
        return None
    return math.dist(asked.begins, seen.path[0])
