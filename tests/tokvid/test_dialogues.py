"""Dialogues of the sprite world: a function of their number, apart in their splits, and judged by the oracle."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

import numpy as np
import pytest

from tokvid.data.clip import Split
from tokvid.data.dialogue import Dialogue, DialogueTurn
from tokvid.data.dialogues import SpriteDialogueConfig, open_dialogues
from tokvid.data.sprites import (
    BACKGROUNDS,
    MOTIONS,
    SPRITES,
    CaptionFacts,
    Oracle,
    Scene,
    Sight,
    SpritePlacement,
    SpriteWorld,
    SpriteWorldConfig,
    is_held_out,
    parse_caption,
)
from tokvid.data.sprites import dialogue_words as words
from tokvid.data.sprites.backgrounds import Background
from tokvid.data.sprites.dialogue_answers import KINDS, Asked, gap_of, is_right
from tokvid.data.sprites.dialogues import SpriteDialogue, SpriteDialogues
from tokvid.errors import ConfigError, DataError

SPLITS: tuple[Split, ...] = ("train", "held_out")
JUDGED = 36
MANY = 200


def open_sprites(split: Split, **changes: int) -> SpriteDialogues:
    source = open_dialogues(SpriteDialogueConfig(**{"train": MANY, "held_out": MANY, **changes}), split)  # type: ignore[arg-type]
    assert isinstance(source, SpriteDialogues)
    return source


@functools.cache
def made(split: Split, count: int) -> tuple[SpriteDialogue, ...]:
    source = open_sprites(split)
    return tuple(source.made(number) for number in range(count))


@functools.cache
def answers(split: Split) -> tuple[tuple[Asked, str, Sight | None], ...]:
    """What each turn of the assistant was asked, its words, and what the oracle saw in its clip."""
    oracle, found = Oracle(SpriteWorldConfig()), []
    for each in made(split, JUDGED):
        sights = oracle.look(np.stack(each.dialogue.clips))
        turns = [turn for turn in each.dialogue.turns if turn.role == "assistant"]
        for asked, turn in zip(each.asked, turns, strict=True):
            text = "".join(piece for piece in turn.pieces if isinstance(piece, str))
            clips = [piece for piece in turn.pieces if isinstance(piece, int)]
            assert len(clips) <= 1
            found.append((asked, text, sights[clips[0]] if clips else None))
    return tuple(found)


def texts(split: Split, role: str) -> Iterator[str]:
    for each in made(split, MANY):
        for turn in each.dialogue.turns:
            yield from (piece for piece in turn.pieces if isinstance(piece, str) and turn.role == role)


def make_scene(sprites: list[tuple[str, str]], background: str) -> Scene:
    ground = Background(name=background, phases=(0.0, 0.0, 0.0, 0.0), scale=1.0, tint=(0.0, 0.0, 0.0), contrast=8.0)
    placements = tuple(SpritePlacement(sprite=s, motion=m, size=8, path=((0, 0),)) for s, m in sprites)
    return Scene(background=ground, sprites=placements, size=(32, 32), num_frames=1)


@pytest.mark.parametrize("split", SPLITS)
def test_a_dialogue_is_a_function_of_its_number(split: Split) -> None:
    ours, other_count = open_sprites(split), open_sprites(split, train=MANY + 1, held_out=MANY + 1)
    for number in (7, 0, MANY - 1):
        one, again = ours.load(number), other_count.load(number)
        assert one.turns == again.turns == ours.load(number).turns
        assert len(one.clips) == len(again.clips)
        assert all(np.array_equal(a, b) for a, b in zip(one.clips, again.clips, strict=True))
    assert ours.load(1).turns != open_sprites(split, seed=1).load(1).turns
    assert len({ours.load(number).turns for number in range(40)}) == 40
    for number in (-1, MANY):
        with pytest.raises(IndexError, match=rf"dialogues 0 to {MANY - 1}, got {number}"):
            ours.load(number)


@pytest.mark.parametrize("split", SPLITS)
def test_clips_are_as_the_source_says(split: Split) -> None:
    source = open_sprites(split, num_frames=9)
    assert (len(source), source.size, source.num_frames, source.fps) == (MANY, (32, 32), 9, 8.0)
    for number in range(10):
        for clip in source.load(number).clips:
            assert clip.shape == (9, 32, 32, 3) and clip.dtype == np.uint8


def test_the_splits_are_apart() -> None:
    spoken = {split: {text.lower().rstrip(".") for text in texts(split, "user")} for split in SPLITS}
    assert not spoken["train"] & spoken["held_out"]
    shown = {
        split: {
            (placed.sprite, placed.motion) for each in made(split, MANY) for s in each.scenes for placed in s.sprites
        }
        for split in SPLITS
    }
    assert not [pair for pair in shown["train"] if is_held_out(*pair)]
    new = [pair for pair in shown["held_out"] if is_held_out(*pair)]
    assert len(new) > len(shown["held_out"]) // 3


def test_no_wording_is_in_both_splits() -> None:
    tables = [table for table in vars(words).values() if isinstance(table, dict) and "held_out" in table]
    assert len(tables) == 12
    train, held_out, far = ({text for table in tables for text in table[kind]} for kind in (*SPLITS, "far"))
    assert train and held_out and far and not train & held_out and not held_out & far
    nearest = {text: min(train, key=lambda other: word_distance(text, other)) for text in far}
    near = {text: other for text, other in nearest.items() if word_distance(text, other) < 3}
    assert not near, "words in common are no fault, but nearly the same wording is"
    config = SpriteWorldConfig()
    usual, unlike = (SpriteDialogues(config, "held_out", 20, far=far).made(7) for far in (False, True))
    assert usual.scenes == unlike.scenes and usual.dialogue.turns != unlike.dialogue.turns


def word_distance(one: str, other: str) -> int:
    """How many words are put in, left out or changed; a clip by any name is the same."""
    ours, theirs = (re.sub(r"\b(clip|one|videos|clips)\b", "video", text.rstrip("?.")).split() for text in (one, other))
    row = list(range(len(theirs) + 1))
    for number, word in enumerate(ours, start=1):
        before, row = row, [number]
        for place, its in enumerate(theirs):
            row.append(min(before[place] + (word != its), before[place + 1] + 1, row[place] + 1))
    return row[-1]


@pytest.mark.parametrize("split", SPLITS)
def test_every_kind_of_answer_and_every_order_occurs(split: Split) -> None:
    dialogues = made(split, MANY)
    assert {asked.kind for each in dialogues for asked in each.asked} == set(KINDS)
    assert {len(each.scenes) for each in dialogues} == {1, 2, 3}
    assert any(len(scene.sprites) == 2 for each in dialogues for scene in each.scenes)
    first = [each.dialogue.turns[0].pieces for each in dialogues]
    assert {tuple(type(piece) for piece in pieces) for pieces in first} == {
        (str,),
        (int, str),
        (str, int),
        (int, int, str),
    }
    said = list(texts(split, "user"))
    assert any(text[0].isupper() for text in said) and any(text.endswith(".") for text in said)
    # The assistant has one way to say each thing.
    assert all(text == text.lower() and not text.endswith(".") for text in texts(split, "assistant"))


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_continued_begins_where_the_last_clip_ends(split: Split) -> None:
    continued = 0
    for each in made(split, MANY):
        if [asked.kind for asked in each.asked][-1] == "continue":
            first, second = each.scenes
            assert first.background == second.background
            (before,), (after,) = first.sprites, second.sprites
            assert (before.sprite, before.motion, before.size) == (after.sprite, after.motion, after.size)
            assert before.path[-1] == after.path[0]
            continued += 1
    assert continued > 5


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_changed_is_the_same_but_for_its_motion(split: Split) -> None:
    changed = 0
    for each in made(split, MANY):
        drawn = [turn.pieces[1] for turn in each.dialogue.turns if turn.role == "assistant" and len(turn.pieces) == 2]
        numbers = [number for number in drawn if isinstance(number, int)]
        kinds = [asked.kind for asked in each.asked if asked.kind in ("draw", "change", "continue")]
        for number, kind in zip(numbers, kinds, strict=True):
            if kind == "change":
                before, after = each.scenes[number - 1], each.scenes[number]
                assert before.background == after.background
                (one,), (other,) = before.sprites, after.sprites
                assert (one.sprite, one.size) == (other.sprite, other.size)
                assert one.motion != other.motion
                changed += 1
    assert changed > 20


@pytest.mark.parametrize("split", SPLITS)
def test_right_answers_are_judged_right(split: Split) -> None:
    judged = answers(split)
    assert len(judged) > JUDGED
    for asked, text, sight in judged:
        assert asked.text == text
        assert is_right(asked, text, sight), (asked, sight)


@pytest.mark.parametrize("split", SPLITS)
def test_other_clips_are_judged_wrong(split: Split) -> None:
    drawn = [(asked, text, sight) for asked, text, sight in answers(split) if sight is not None]
    assert len(drawn) > 10
    for asked, text, sight in drawn:
        assert asked.facts is not None and sight is not None
        assert not is_right(asked, text, None), "there is no clip"
        (first, *rest) = sight.sprites
        motion = next(motion for motion in MOTIONS if motion != first.motion)
        turned = Sight(sprites=(first._replace(motion=motion), *rest), background=sight.background)
        assert not is_right(asked, text, turned)
        seen = {name for name, _ in asked.facts.sprites}
        sprite = next(sprite for sprite in SPRITES if sprite not in seen)
        other = Sight(
            sprites=tuple(each._replace(sprite=sprite) for each in sight.sprites), background=sight.background
        )
        assert not is_right(asked, text, other)
        assert not is_right(asked, text, Sight(sprites=(), background=sight.background))
        if asked.facts.background is not None:
            ground = next(name for name in BACKGROUNDS if name != sight.background)
            assert not is_right(asked, text, Sight(sprites=sight.sprites, background=ground))
        # What was drawn is judged by what is seen; its words are free.
        assert is_right(asked, "here it is", sight)


@pytest.mark.parametrize("split", SPLITS)
def test_other_descriptions_are_judged_wrong(split: Split) -> None:
    described = [(asked, text) for asked, text, _ in answers(split) if asked.kind == "describe"]
    sight = next(sight for _, _, sight in answers(split) if sight is not None)
    assert len(described) > 5
    for asked, text in described:
        assert asked.facts is not None
        assert not is_right(asked, text, sight), "a clip was not asked for"
        assert is_right(asked, f"{text.capitalize()}.", None)
        wrong: list[str] = ["", "nothing is here", f"a zebra {text}"]
        for motion in MOTIONS:
            for sprite in (asked.facts.sprites[0][0], "frog", "unicorn"):
                wrong.append(f"{words.say_name(sprite)} {words.say_motion(motion)} over grass")
        facts = (asked.facts.sprites, asked.facts.background)
        for answer in wrong:
            try:
                same = parse_caption(answer) == CaptionFacts(sprites=facts[0], background=facts[1])
            except DataError:
                same = False
            assert is_right(asked, answer, None) == same
        bare = " and ".join(f"{words.say_name(name)} {words.say_motion(str(motion))}" for name, motion in facts[0])
        assert not is_right(asked, bare, None), "the background is missing"
        third = next(sprite for sprite in SPRITES if sprite not in bare)
        assert not is_right(asked, f"{words.say_name(third)} stays still and {text}", None), "nothing else is seen"


def test_the_order_of_two_sprites_in_a_description_is_free() -> None:
    pairs = [("frog", "left"), ("crab", "bounce-upright")]
    text, turned = (words.say_scene(make_scene(list(order), "snow")) for order in (pairs, pairs[::-1]))
    asked = Asked(kind="describe", text=text, facts=parse_caption(text))
    assert text != turned and is_right(asked, turned, None)
    swapped = words.say_scene(make_scene([("frog", "bounce-upright"), ("crab", "left")], "snow"))
    assert not is_right(asked, swapped, None)


def test_a_question_is_answered_by_the_letter() -> None:
    asked = [(each, text) for split in SPLITS for each, text, _ in answers(split) if each.kind == "question"]
    sight = Sight(sprites=(), background=None)
    assert len(asked) > 10
    for each, text in asked:
        assert is_right(each, f" {text}\n", None)
        assert not is_right(each, text, sight), "a clip was not asked for"
        for wrong in ("", "yes", text.upper(), f"{text} indeed", f"not {text}"):
            assert not is_right(each, wrong, None)


def test_training_asks_nothing_twice_of_two_clips() -> None:
    """Another asking of the same is answered by copying what was said before, and teaches only that."""
    most = 0
    for each in made("train", MANY):
        said = [turn.pieces[0] for turn in each.dialogue.turns if turn.role == "assistant"]
        answers = [
            text for text, asked in zip(said, each.asked, strict=True) if asked.kind == "question" and ":" in asked.text
        ]
        assert len(answers) == len(set(answers))
        most = max(most, len(answers))
    assert most > 3, "whether both move the same way, and of sprites and motions in which clip they are"


def test_conclusions_come_after_what_they_are_from() -> None:
    assert words.say_comparison("left", "left") == "the first moves left and the second moves left: the same"
    assert words.say_comparison("stay", "up") == "the first stays still and the second moves up: not the same"
    said = "the first shows a frog, the second an ape: the ape is in the second"
    assert words.say_which("frog", "ape", "ape") == said
    assert words.say_which("ape", "frog", "ape").endswith("an ape, the second a frog: the ape is in the first")
    assert words.say_which("ape", "ape", "ape").endswith("the ape is in both")
    assert words.say_which("ape", "frog", "fox").endswith("the fox is in neither")
    said = "the first moves left and the second stays still: that is in the second"
    assert words.say_which_motion("left", "stay", "stay") == said
    assert words.say_which_motion("left", "left", "left").endswith("that is in both")
    assert words.say_which_motion("left", "left", "up").endswith("that is in neither")


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_described_is_the_newest_clip(split: Split) -> None:
    kinds = set()
    for each in made(split, MANY):
        shown = 0
        for user, assistant, asked in zip(each.dialogue.turns[::2], each.dialogue.turns[1::2], each.asked, strict=True):
            own = sum(isinstance(piece, int) for piece in user.pieces)
            shown += own
            if asked.kind in ("describe", "again"):
                assert (own == 1) == (asked.kind == "describe")
                assert asked.text == words.say_scene(each.scenes[shown - 1])
                kinds.add((asked.kind, shown))
            shown += sum(isinstance(piece, int) for piece in assistant.pieces)
    assert {("describe", 1), ("describe", 2), ("again", 1), ("again", 2)} <= kinds


def test_a_continuation_is_as_far_from_the_clip_before_as_it_begins_elsewhere() -> None:
    oracle, gaps = Oracle(SpriteWorldConfig()), []
    for each in made("held_out", MANY):
        if each.asked[-1].kind != "continue":
            sights = oracle.look(np.stack(each.dialogue.clips[-1:]))
            assert all(gap_of(asked, sights[0]) is None for asked in each.asked), "nothing is continued"
            continue
        asked, clips = each.asked[-1], each.dialogue.clips
        right, moved = oracle.look(np.stack([clips[1], np.roll(clips[1], 5, axis=2)]))
        gap, other = gap_of(asked, right), gap_of(asked, moved)
        assert gap is not None
        gaps.append(gap)
        if other is not None and moved.sprites[0].motion == right.sprites[0].motion:
            assert other > 3
    assert len(gaps) > 5 and np.mean(np.array(gaps) <= 2) > 0.9


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_what_the_assistant_says_is_understood(background: str) -> None:
    for sprite in SPRITES:
        for motion in MOTIONS:
            text = words.say_scene(make_scene([(sprite, motion)], background))
            assert parse_caption(text) == CaptionFacts(sprites=((sprite, motion),), background=background), text


def test_what_the_assistant_says_of_two_is_understood() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        names = rng.choice(len(SPRITES), 2, replace=False)
        pairs = [(SPRITES[int(name)], MOTIONS[int(rng.integers(len(MOTIONS)))]) for name in names]
        background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
        text = words.say_scene(make_scene(pairs, background))
        assert parse_caption(text) == CaptionFacts(sprites=tuple(pairs), background=background), text


def test_names_have_the_article_that_is_spoken() -> None:
    said = {words.say_name(name) for name in ("apple", "unicorn", "frog")}
    assert said == {"an apple", "a unicorn", "a frog"}


def turns(*pieces: tuple[str | int, ...], roles: str = "uaua") -> tuple[DialogueTurn, ...]:
    names = {"u": "user", "a": "assistant"}
    return tuple(
        DialogueTurn(role=names[role], pieces=each)  # type: ignore[arg-type]
        for role, each in zip(roles, pieces, strict=False)
    )


CLIP = np.zeros((1, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("roles", ["", "u", "a", "au", "uu", "aa", "uau", "uaau", "uaua"])
def test_user_and_assistant_speak_by_turns(roles: str) -> None:
    said = turns(*([("hello",)] * len(roles)), roles=roles)
    if roles == "uaua":
        assert len(Dialogue(turns=said, clips=()).turns) == 4
        return
    with pytest.raises(DataError, match=r"the user first and the assistant last, got \["):
        Dialogue(turns=said, clips=())


@pytest.mark.parametrize(
    ("pieces", "count"),
    [
        ((("look", 0), ("yes",)), 2),  # a clip that nobody shows
        ((("look", 0), (0, "yes")), 1),  # twice
        ((("look", 1), (0,)), 2),  # out of order
        ((("look", 1), ("yes",)), 1),  # one that is not there
        ((("look", -1), ("yes",)), 1),
        ((("look",), ("yes",)), 1),
        ((("look", 0, 1), ("yes",)), 1),
    ],
)
def test_every_clip_is_shown_once_in_its_order(pieces: tuple[tuple[str | int, ...], ...], count: int) -> None:
    with pytest.raises(DataError, match=rf"shows its {count} clips once each, in their order, got the numbers \["):
        Dialogue(turns=turns(*pieces), clips=(CLIP,) * count)
    whole = Dialogue(turns=turns((0, "and", 1), ("so", 2)), clips=(CLIP,) * 3)
    assert len(whole.clips) == 3


def test_digests_differ_where_dialogues_do() -> None:
    kept = SpriteDialogueConfig(train=8, held_out=8)
    configs = [
        kept,
        SpriteDialogueConfig(train=9, held_out=9),
        SpriteDialogueConfig(train=8, held_out=8, seed=1),
        SpriteDialogueConfig(train=8, held_out=8, size=(32, 48)),
        SpriteDialogueConfig(train=8, held_out=8, num_frames=9),
        SpriteDialogueConfig(train=8, held_out=8, fps=4.0),
    ]
    digests = [open_dialogues(config, split).digest() for config in configs for split in SPLITS]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in digests)
    assert open_dialogues(kept, "train").digest() == digests[0]


@pytest.mark.parametrize("name", ["train", "held_out"])
def test_a_split_without_dialogues_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        SpriteDialogueConfig(**{name: 0})  # type: ignore[arg-type]


def test_clips_of_one_frame_are_refused() -> None:
    """Nothing moves in them, and what does not move cannot be continued: such dialogues were never done."""
    with pytest.raises(ConfigError, match="num_frames must be at least 2, got 1"):
        SpriteDialogueConfig(num_frames=1)


def test_the_clips_of_dialogues_are_those_of_the_world() -> None:
    """What is drawn for a dialogue is what the world draws of its scene."""
    (each, *_) = made("train", MANY)
    for scene, clip in zip(each.scenes, each.dialogue.clips, strict=True):
        assert np.array_equal(SpriteWorld(SpriteWorldConfig()).render(scene), clip)
