"""Verdicts on clips whose truth is known."""

from __future__ import annotations

import pytest

from tokvid.data.sprites import SpriteWorld, SpriteWorldConfig, agreement, parse_caption
from tokvid.data.sprites.oracle import Oracle, SeenSprite, Sight
from tokvid.data.sprites.verdicts import JudgedClips, describe, judge_clips

SIGHT = Sight(
    sprites=(SeenSprite("apple", "left", 0.9), SeenSprite("car", "up", 0.8)),
    background="grass",
)


def test_what_captions_name_is_counted() -> None:
    captions = ["an apple moves left", "an apple moves right on grass", "a lion moves left over sand"]
    verdicts = tuple(agreement(parse_caption(caption), SIGHT) for caption in captions)
    judged = JudgedClips(sights=(SIGHT,) * 3, verdicts=verdicts)
    counts = {name: (part.right, part.count) for name, part in judged.proportions.items()}
    assert counts == {"sprite": (2, 3), "direction": (2, 3), "all": (1, 3), "background": (1, 2)}


def test_rendered_clips_are_judged_right() -> None:
    config = SpriteWorldConfig()
    frames, captions = SpriteWorld(config).render_many(range(8), "held_out")
    judged = judge_clips(Oracle(config), captions, frames)
    assert judged.proportions["all"].right == 8
    assert judged.figures()["sprite"]["interval_95"][0] == pytest.approx(0.6756, abs=1e-3)


def test_what_was_seen_is_told_in_a_line() -> None:
    assert describe(SIGHT) == "apple left and car up, grass"
    unnamed = Sight(sprites=(SeenSprite(None, None, 0.5),), background=None)
    assert describe(unnamed) == "something moving, no background"
    assert describe(Sight(sprites=(), background="sea")) == "no sprite, sea"
