from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokvid.data.sprites import (
    BACKGROUNDS,
    MOTIONS,
    SPRITES,
    CaptionFacts,
    Scene,
    SpritePlacement,
    SpriteWorld,
    SpriteWorldConfig,
    parse_caption,
    write_caption,
)
from tokvid.data.sprites.backgrounds import Background
from tokvid.data.sprites.captions import BACKGROUND_PHRASES, BOUNCE_PHRASES, DIRECTION_PHRASES, STAY_PHRASES
from tokvid.errors import DataError


def make_scene(sprites: list[tuple[str, str]], background: str) -> Scene:
    ground = Background(name=background, phases=(0.0, 0.0, 0.0, 0.0), scale=1.0, tint=(0.0, 0.0, 0.0), contrast=8.0)
    placements = tuple(SpritePlacement(sprite=s, motion=m, size=8, path=((0, 0),)) for s, m in sprites)
    return Scene(background=ground, sprites=placements, size=(32, 32), num_frames=1)


named = st.lists(
    st.tuples(st.sampled_from(SPRITES), st.sampled_from(MOTIONS)), min_size=1, max_size=2, unique_by=lambda p: p[0]
)


@settings(max_examples=400, deadline=None)
@given(named, st.sampled_from(BACKGROUNDS), st.integers(0, 2**32))
def test_parsing_inverts_writing(sprites: list[tuple[str, str]], background: str, seed: int) -> None:
    text = write_caption(make_scene(sprites, background), np.random.default_rng(seed))
    facts = parse_caption(text)
    assert facts.sprites == tuple(sprites)
    assert facts.background in (background, None)
    assert parse_caption(text.upper() + ".") == facts


def test_every_phrase_is_understood() -> None:
    for motion, phrases in (*DIRECTION_PHRASES.items(), *BOUNCE_PHRASES.items(), ("stay", STAY_PHRASES)):
        verb = "bounces " if motion in BOUNCE_PHRASES else "" if motion == "stay" else "moves "
        for phrase in phrases:
            assert parse_caption(f"the frog {verb}{phrase}").sprites == (("frog", motion),), phrase
    for background, phrases in BACKGROUND_PHRASES.items():
        for phrase in phrases:
            for text in (f"a frog rests {phrase}", f"{phrase}, a frog rests"):
                assert parse_caption(text) == CaptionFacts(sprites=(("frog", "stay"),), background=background)


@pytest.mark.parametrize(
    ("text", "sprites", "background"),
    [
        ("A red apple moves left.", [("apple", "left")], None),
        ("apple going right, grass", [("apple", "right")], "grass"),
        ("moving up, a shiny rocket", [("rocket", "up")], None),
        ("the car drives from left to right", [("car", "right")], None),
        ("the car drives from the top to the bottom", [("car", "down")], None),
        ("a car bounces from left to right", [("car", "bounce-sideways")], None),
        ("a ball hops sideways on the snow", [("ball", "bounce-sideways")], "snow"),
        ("a ball bounces vertically", [("ball", "bounce-upright")], None),
        ("a frog and a pig move down", [("frog", "down"), ("pig", "down")], None),
        ("the sun rises in the sky", [("sun", "up")], "sky"),
        ("a whale", [("whale", None)], None),
        ("a pizza floats to the upper right corner of the picture", [("pizza", "up-right")], None),
        (
            "a car moves up and left and a bus moves down and right over sand",
            [("car", "up-left"), ("bus", "down-right")],
            "sand",
        ),
        ("the bus stays while grapes fall", [("bus", "stay"), ("grapes", "down")], None),
        ("two apples fly up in the night sky", [("apple", "up")], "night"),
    ],
)
def test_free_wording(text: str, sprites: list[tuple[str, str | None]], background: str | None) -> None:
    assert parse_caption(text) == CaptionFacts(sprites=tuple(sprites), background=background)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a zebra moves left", "'zebra'"),
        ("an apple moves left and a big zebra moves right", "'zebra'"),
        ("an appel moves left", "did you mean 'apple'"),
        ("something moves left", "no sprite is named"),
        ("", "no sprite is named"),
        ("an apple moves left and the apple moves right", "two motions: left and right"),
    ],
)
def test_what_is_no_caption_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_caption(text)


def test_captions_vary_with_a_small_vocabulary() -> None:
    world = SpriteWorld(SpriteWorldConfig())
    captions = [world.caption(index, split="train") for index in range(1500)]
    words = {word for caption in captions for word in caption.replace(",", "").split()}
    assert len(words) < 200
    assert len(set(captions)) > 1300
    shares = np.mean([parse_caption(caption).background is not None for caption in captions])
    assert 0.7 < shares < 0.8
    assert not any(
        f" a {vowel}" in f" {c}" for c in captions for vowel in ("apple", "egg", "octopus", "avocado", "owl")
    )
    assert not any(" an unicorn" in f" {caption}" for caption in captions)
