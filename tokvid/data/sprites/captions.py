"""Captions of the sprite world: written in varied wording, and read back into facts.

The reader understands every caption the writer can write, and the free wording of a person who names
sprites, motions and a background in plain English. It knows nothing of pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from tokvid.data.sprites.scene import Scene
from tokvid.data.sprites.sheet import SPRITES
from tokvid.errors import DataError

ARTICLES = ("a", "a", "a", "the", "the", "one")
ADJECTIVES = ("little", "small")
# The form after "is" follows the form that stands alone.
MOVE_VERBS = (
    ("moves", "moving"),
    ("drifts", "drifting"),
    ("slides", "sliding"),
    ("goes", "going"),
    ("flies", "flying"),
    ("travels", "travelling"),
    ("glides", "gliding"),
    ("floats", "floating"),
)
BOUNCE_VERBS = (("bounces", "bouncing"), ("hops", "hopping"), ("jumps", "jumping"))
STAY_PHRASES = (
    "stays still",
    "stays in place",
    "does not move",
    "stands still",
    "is not moving",
    "rests",
    "sits still",
)
DIRECTION_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("left", "to the left", "leftwards"),
    "right": ("right", "to the right", "rightwards"),
    "up": ("up", "upwards", "to the top"),
    "down": ("down", "downwards", "to the bottom"),
    "up-left": ("up and left", "up and to the left", "to the upper left", "diagonally up and left"),
    "up-right": ("up and right", "up and to the right", "to the upper right", "diagonally up and right"),
    "down-left": ("down and left", "down and to the left", "to the lower left", "diagonally down and left"),
    "down-right": ("down and right", "down and to the right", "to the lower right", "diagonally down and right"),
}
BOUNCE_PHRASES: dict[str, tuple[str, ...]] = {
    "bounce-sideways": ("side to side", "from side to side", "left and right"),
    "bounce-upright": ("up and down",),
}
BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "grass": ("over grass", "on the grass", "over the grass", "on grass"),
    "sand": ("over sand", "on the sand", "over the sand", "on sand"),
    "water": ("over water", "on the water", "over the water", "on water"),
    "sky": ("in the sky", "across the sky", "in front of the sky"),
    "snow": ("over snow", "on the snow", "in the snow", "on snow"),
    "night": ("at night", "in the night", "in the night sky"),
    "brick": ("over brick", "in front of a brick wall", "on a brick wall", "over bricks"),
    "stone": ("over stone", "on stone", "on the stones", "on a stone floor"),
}
BACKGROUND_SHARE = 0.75  # of the captions name the background
JOINERS = ("and", "while")


@dataclass(frozen=True, kw_only=True)
class CaptionFacts:
    """What a caption claims: (sprite, motion) in the order of the text; None where it does not say."""

    sprites: tuple[tuple[str, str | None], ...]
    background: str | None


def write_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Word ``scene`` in lower case; every sprite and motion is named, the background in most captions."""
    clauses = []
    for placement in scene.sprites:
        clauses.append(f"{_name_phrase(placement.sprite, rng)} {_motion_phrase(placement.motion, rng)}")
    text = f" {_pick(JOINERS, rng)} ".join(clauses)
    if rng.random() >= BACKGROUND_SHARE:
        return text
    place = _pick(BACKGROUND_PHRASES[scene.background.name], rng)
    return f"{place}, {text}" if rng.random() < 0.2 else f"{text} {place}"


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _name_phrase(sprite: str, rng: np.random.Generator) -> str:
    noun = f"{_pick(ADJECTIVES, rng)} {sprite}" if rng.random() < 0.15 else sprite
    article = _pick(ARTICLES, rng)
    # "a unicorn": the only name here whose first vowel is spoken as a consonant.
    if article == "a" and noun[0] in "aeiou" and not noun.startswith("uni"):
        article = "an"
    return f"{article} {noun}"


def _motion_phrase(motion: str, rng: np.random.Generator) -> str:
    if motion == "stay":
        return _pick(STAY_PHRASES, rng)
    verbs, phrases = (
        (MOVE_VERBS, DIRECTION_PHRASES[motion])
        if motion in DIRECTION_PHRASES
        else (BOUNCE_VERBS, BOUNCE_PHRASES[motion])
    )
    alone, after_is = verbs[int(rng.integers(len(verbs)))]
    verb = f"is {after_is}" if rng.random() < 0.2 else alone
    return f"{verb} {_pick(phrases, rng)}"


def _words(line: str) -> frozenset[str]:
    return frozenset(line.split())


_LEFT = frozenset({"left", "leftward", "leftwards"})
_RIGHT = frozenset({"right", "rightward", "rightwards"})
_UP = _words("up upward upwards upper top rise rises rising climb climbs climbing")
_DOWN = _words("down downward downwards lower bottom fall falls falling sink sinks sinking")
_SIDEWAYS = frozenset({"side", "sides", "sideways", "horizontally"})
_UPRIGHT = frozenset({"vertically"})
_BOUNCE = _words("bounce bounces bouncing hop hops hopping jump jumps jumping")
_STAY = _words(
    "stay stays staying still rest rests resting stand stands standing sit sits sitting not motionless stationary"
)
_DIRECTION_WORDS = _LEFT | _RIGHT | _UP | _DOWN | _SIDEWAYS | _UPRIGHT
_BACKGROUND_WORDS = {
    "grass": "grass",
    "meadow": "grass",
    "lawn": "grass",
    "sand": "sand",
    "water": "water",
    "sky": "sky",
    "snow": "snow",
    "night": "night",
    "brick": "brick",
    "bricks": "brick",
    "stone": "stone",
    "stones": "stone",
}
# Nouns that a description may use without naming a sprite.
_PLAIN_NOUNS = _words(
    "wall floor side sides middle center centre corner edge place spot scene frame picture image screen video"
    " clip background way direction diagonal line"
)
# Words that end a noun phrase.
_GLUE = _words(
    "a an the one and while is are does do not of on over in at to from across above front towards toward with"
    " by along as then both it its that which against"
)
_VERBS = (
    frozenset(word for pair in (*MOVE_VERBS, *BOUNCE_VERBS) for word in pair)
    | _BOUNCE
    | _STAY
    | _words(
        "move drift slide go fly travel glide float traveling run runs running walk walks walking swim swims"
        " swimming roll rolls rolling rise rises rising fall falls falling climb climbs climbing sink sinks sinking"
    )
)
_FROM_TO = re.compile(
    r"\bfrom (?:the )?(?:left|right|top|bottom|upper|lower)(?: (?:left|right))?(?: (?:side|corner))?(?= to\b)"
)


def parse_caption(text: str) -> CaptionFacts:
    """Read a caption; the inverse of :func:`write_caption`, and lenient about wording.

    Raises DataError when the text names no sprite, or a thing that is no sprite of the sheet, or gives one
    sprite two motions.
    """
    lowered = " ".join(re.findall(r"[a-z]+", text.lower()))
    words = lowered.split()
    _refuse_unknown_nouns(words, text)
    places = [(number, sprite) for number, word in enumerate(words) if (sprite := _sprite_of(word))]
    if not places:
        raise DataError(f"no sprite is named in the caption {text!r}; the sprites are: {', '.join(SPRITES)}")
    found: dict[str, str | None] = {}
    bounds = [number for number, _ in places] + [len(words)]
    motions = [_motion_of(words[bounds[i] : bounds[i + 1]]) for i in range(len(places))]
    if len(places) == 1 and motions[0] is None:
        motions = [_motion_of(words)]
    for i in reversed(range(len(places) - 1)):
        # "an apple and a car move left": what comes next speaks for both.
        motions[i] = motions[i] or motions[i + 1]
    for (_, sprite), motion in zip(places, motions, strict=True):
        known = found.setdefault(sprite, motion)
        if motion is not None and known is not None and known != motion:
            raise DataError(f"the caption {text!r} gives {sprite!r} two motions: {known} and {motion}; name one")
        found[sprite] = known or motion
    return CaptionFacts(sprites=tuple(found.items()), background=_background_of(words))


def _sprite_of(word: str) -> str | None:
    if word in SPRITES:
        return word
    return word[:-1] if word.endswith("s") and word[:-1] in SPRITES else None


def _background_of(words: list[str]) -> str | None:
    named = [_BACKGROUND_WORDS[word] for word in words if word in _BACKGROUND_WORDS]
    return "night" if "night" in named else named[0] if named else None  # "the night sky" is night


def _motion_of(words: list[str]) -> str | None:
    """The motion that a clause speaks of, or None."""
    clause = " ".join(words)
    seen = set(words)
    bounces = bool(seen & _BOUNCE)
    if not bounces:
        seen = set(_FROM_TO.sub("", clause).split())  # "from left to right" goes right
    left, right, up, down = (bool(seen & side) for side in (_LEFT, _RIGHT, _UP, _DOWN))
    if (left and right) or "side to side" in clause or (bounces and seen & _SIDEWAYS):
        return "bounce-sideways"
    if (up and down) or (bounces and seen & _UPRIGHT):
        return "bounce-upright"
    vertical = "up" if up else "down" if down else ""
    horizontal = "left" if left else "right" if right else ""
    if vertical or horizontal:
        return "-".join(part for part in (vertical, horizontal) if part)
    return "stay" if seen & _STAY else None


def _refuse_unknown_nouns(words: list[str], text: str) -> None:
    """Raise DataError for "a zebra": an article whose noun phrase ends in nothing we know."""
    for number, word in enumerate(words):
        if word not in ("a", "an", "the", "one"):
            continue
        phrase = []
        for other in words[number + 1 :]:
            if other in _GLUE or other in _VERBS:
                break
            phrase.append(other)
        known = (
            other in _BACKGROUND_WORDS or other in _DIRECTION_WORDS or other in _PLAIN_NOUNS or _sprite_of(other)
            for other in phrase
        )
        if phrase and not any(known):
            close = get_close_matches(phrase[-1], SPRITES, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the sprites are: {', '.join(SPRITES)}"
            raise DataError(f"no sprite is called {phrase[-1]!r} (in the caption {text!r}): {hint}")
