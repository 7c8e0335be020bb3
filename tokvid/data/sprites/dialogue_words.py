"""How people and the assistant word things in dialogues of the sprite world; some wordings are kept for evaluation.

Most of those that are ``held_out`` are a word or two away from one of training, those that are ``far`` at least three.

The assistant has one way to say each thing, so that its answers can be judged exactly. Nothing here draws clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from tokvid.data.sprites.captions import BACKGROUND_PHRASES, BOUNCE_PHRASES, DIRECTION_PHRASES
from tokvid.data.sprites.motions import BOUNCES, DIRECTIONS
from tokvid.data.sprites.scene import Scene

Wording = Literal["train", "held_out", "far"]
Wordings = Mapping[Wording, Sequence[str]]

DESCRIBE: Wordings = {
    "train": (
        "describe this video",
        "describe the clip",
        "what is on this clip?",
        "what is in the video?",
        "what happens here?",
        "what is happening in this video?",
        "tell me what you see",
        "tell me what is in this clip",
        "what do you see here?",
        "what does the video show?",
        "say what this clip shows",
        "caption this clip",
        "what can be seen in this one?",
        "what does this show?",
        "what did you see?",
        "and this one, what is it?",
        "here is a video: what is in it?",
        "look at this clip and say what happens",
        "i have a clip, what does it show?",
        "this one, please describe it",
        "do you see what moves here?",
        "so what is happening here?",
        "say in words what the video shows",
        "can you tell me what is going on here?",
        "give me a caption for it",
    ),
    "held_out": ("say what is in this video", "what do you see in the clip?"),
    "far": ("say to me what you see in this video", "this clip, what does it show?"),
}
DRAW: Wordings = {
    "train": (
        "draw: {caption}",
        "show me how {caption}",
        "show how {caption}",
        "make a clip in which {caption}",
        "make a video of this: {caption}",
        "a clip where {caption}, please",
        "can you draw how {caption}?",
        "could you make a video in which {caption}?",
        "i want to see how {caption}",
        "i would like a video where {caption}",
        "please draw this: {caption}",
        "a video, please: {caption}",
        "now show me a clip where {caption}",
        "{caption}",
    ),
    "held_out": ("make a video where {caption}", "can you show how {caption}?"),
    "far": ("let me see a clip in which {caption}", "this is the video that i want: {caption}"),
}
CONTINUE: Wordings = {
    "train": (
        "continue it",
        "continue this video",
        "continue the clip, please",
        "what happens next?",
        "show what happens next",
        "show me what happens after this",
        "show how it goes on",
        "show me the rest",
        "what comes then? show it",
        "go on",
        "go on with it",
        "please go on",
        "go on with this clip",
        "and then?",
        "please continue with it",
        "draw what happens then",
        "make the next part",
        "how does it go on?",
        "keep going",
        "keep it going",
        "carry on",
        "and now?",
        "what is next?",
        "what will happen now?",
        "then what?",
        "show the next part",
        "now the next part, please",
        "let it run on",
        "let the video play on",
        "do not stop here",
        "i want to see the rest of it",
        "i want to see how it ends",
        "can you continue this clip?",
        "could you go on with the video?",
        "more of it, please",
        "where does it go next?",
        "draw what comes after it",
        "it should go on now",
        "make it go on",
        "make it longer",
        "make a longer one of it",
        "what happens after that?",
        "and after that?",
        "let me see what comes next",
        "let me see the rest of the clip",
        "begin where it ends and go on",
        "go on from its end",
        "now draw the rest",
        "the next seconds of it, please",
        "extend this clip",
        "extend the video",
        "play on",
        "what follows? draw it",
        "i want to know what happens next, show it",
        "so what comes after this one?",
        "and what does it do then? draw it",
    ),
    "held_out": ("show what happens then", "please go on with it"),
    "far": ("and what happens after that? show me", "make the clip go on from here"),
}
CHANGE_DIRECTION: Wordings = {
    "train": (
        "make it move {phrase}",
        "make it go {phrase} now",
        "now {phrase}, please",
        "now let it go {phrase}",
        "let it go {phrase} instead",
        "the same, but moving {phrase}",
        "the same clip, but {phrase}",
        "again, but this time {phrase}",
        "once more, but {phrase}",
        "can it go {phrase}?",
        "could it move {phrase} instead?",
        "change the direction: {phrase}",
        "it should move {phrase}",
        "make that go {phrase}",
        "please move it {phrase}",
        "i would like it moving {phrase}",
        "i want the same but {phrase}",
        "can you make it move {phrase}?",
        "let me see it going {phrase}",
        "do it once more, going {phrase} now",
        "{phrase} this time",
    ),
    "held_out": ("could it go {phrase} now?", "the same again, but {phrase}"),
    "far": ("i want it to go {phrase} this time", "do that once more and let it move {phrase}"),
}
CHANGE_BOUNCE: Wordings = {
    "train": (
        "make it bounce {phrase}",
        "make it bounce {phrase} now",
        "let it bounce {phrase} instead",
        "the same, but bouncing {phrase}",
        "can it bounce {phrase}?",
        "could it jump {phrase} instead?",
        "again, but now it bounces {phrase}",
        "it should jump {phrase}",
        "i would like it bouncing {phrase}",
        "can you make it bounce {phrase}?",
        "let me see it jump {phrase}",
    ),
    "held_out": ("could it bounce {phrase} now?",),
    "far": ("i want it to bounce {phrase} this time",),
}
CHANGE_STAY: Wordings = {
    "train": (
        "make it stay still",
        "make it stay still now",
        "let it stay in place",
        "can it stay still?",
        "could it stand still instead?",
        "now it should not move",
        "the same, but standing still",
        "once more, but it stays still",
        "i would like it standing still",
        "can you make it stay in place?",
        "let me see it not moving",
    ),
    "held_out": ("could it stay still now?",),
    "far": ("i want it to stay in place this time",),
}
WHAT: Wordings = {
    "train": (
        "what moved in the {which} video?",
        "what is in the {which} clip?",
        "what does the {which} one show?",
        "what does the {which} video show?",
        "what was it in the {which} video?",
        "what was in the {which} one?",
        "what do you see in the {which} clip?",
        "what can you see in the {which} one?",
        "what could be seen in the {which} clip?",
        "tell me what the {which} video shows",
        "and in the {which} one, what is it?",
        "name what is in the {which} video",
        "the {which} clip, what was it that you saw?",
        "and what was the {which} one?",
        "so what is in the {which} one?",
        "in the {which} video, what is it that moves?",
        "what is the thing in the {which} clip?",
        "can you say what the {which} one shows?",
        "say what was in the {which} video there",
        "what did the {which} clip show?",
        "what thing moved in the {which} one?",
        "i want to know what was in the {which} clip",
        "what was that in the {which} video there?",
    ),
    "held_out": ("what was in the {which} clip?", "what can you see in the {which} video?"),
    "far": ("so what was it that moved in the {which} clip?", "the {which} video, what is in it?"),
}
HOW: Wordings = {
    "train": (
        "how does it move in the {which} video?",
        "how does it move in the {which} clip?",
        "how did it move in the {which} one?",
        "how was it moving in the {which} video?",
        "in the {which} clip, how does it move?",
        "which way does the {which} one go?",
        "which way did it go in the {which} video?",
        "what does it do in the {which} clip?",
        "what is the motion in the {which} one?",
        "tell me how it moves in the {which} video",
        "the {which} clip, how does it move?",
        "and how does the {which} one move?",
        "so how was it moving in the {which} video?",
        "is it moving in the {which} one, and how?",
        "say which way it went in the {which} clip",
        "i want to know the motion in the {which} video",
        "the motion in the {which} video, what is it?",
        "can you say how the {which} one moves?",
        "how did the thing in the {which} clip move?",
        "what motion does the {which} video have?",
        "the {which} one, which way did it go?",
        "where did it go in the {which} one?",
        "what was the motion of the {which} clip?",
    ),
    "held_out": ("how did it move in the {which} clip?",),
    "far": ("and the motion of the {which} one, how was it?",),
}
WHERE: Wordings = {
    "train": (
        "where is the {which} one?",
        "where is it in the {which} clip?",
        "where was it in the {which} clip?",
        "where was it in the {which} video?",
        "in the {which} video, where is it?",
        "what is behind the {which} one?",
        "what was behind it in the {which} video?",
        "where does the {which} clip take place?",
        "what is the background in the {which} video?",
        "tell me where it is in the {which} one",
        "and where is the {which} one?",
        "the {which} clip, where was that?",
        "so where was it in the {which} one?",
        "what place is it in the {which} video?",
        "the background of the {which} clip, what is it?",
        "can you say where the {which} one is?",
        "what ground is in the {which} clip?",
        "what is around it in the {which} one?",
        "i want to know where the {which} one was",
        "what was behind the thing in the {which} one?",
        "where did the {which} video happen?",
    ),
    "held_out": ("where is it in the {which} video?",),
    "far": ("the {which} video, where does it take place?",),
}
SAME: Wordings = {
    "train": (
        "do both move the same way?",
        "do both clips show the same motion?",
        "do the two clips have the same motion?",
        "do the two move the same way?",
        "do the videos show the same direction?",
        "is the motion the same in both clips?",
        "is the motion of the two videos the same?",
        "is it the same motion in the two videos?",
        "does it move the same way in both videos?",
        "do they move in the same way?",
        "are the two motions the same?",
        "tell me if both move the same way",
        "compare the motion of the two videos",
        "and the motion, is it the same?",
        "so do they move the same way or not?",
        "the two clips, do they move in the same way?",
        "is it true that both have the same motion?",
        "was the way they move the same?",
        "do the first and the second move the same way?",
        "are they moving in the same direction?",
        "can you say if the two move in the same way?",
        "i want to know if both motions are the same",
        "same motion or not?",
        "is the way they move the same or not?",
        "did both go the same way?",
        "are both going in one direction?",
        "do both of them go the same way?",
        "does the second move like the first?",
        "is the first moving as the second does?",
        "do they have one motion or two?",
    ),
    "held_out": ("do the two videos show the same motion?",),
    "far": ("is it true that they move the same way in the two?",),
}
WHICH: Wordings = {
    "train": (
        "which video shows the {sprite}?",
        "which one shows the {sprite}?",
        "in which one is the {sprite}?",
        "in which clip is the {sprite}?",
        "in which clip was the {sprite}?",
        "in which video did you see the {sprite}?",
        "which clip has the {sprite}?",
        "which of the two has the {sprite}?",
        "where is the {sprite}, in the first or the second?",
        "is the {sprite} in the first video or in the second?",
        "the {sprite}, in which clip was it?",
        "and which one has the {sprite}?",
        "so where was the {sprite}, in which of the two?",
        "say in which one you saw the {sprite}",
        "was the {sprite} in the first or in the second one?",
        "is it the first or the second that shows the {sprite}?",
        "can you say which video had the {sprite}?",
        "i want to know which clip the {sprite} is in",
        "the {sprite} was in which clip?",
        "which had the {sprite} in it?",
        "find the {sprite}: first or second?",
        "in which of the videos is there a {sprite}?",
        "tell me which one the {sprite} was in",
        "the first or the second, which one has the {sprite}?",
        "in which clips do you see the {sprite}?",
        "is the {sprite} in both of them?",
        "is there a {sprite} in one of them?",
        "do both show the {sprite}?",
    ),
    "held_out": ("in which video is the {sprite}?",),
    "far": ("was it the first clip or the second that had the {sprite}?",),
}
WHICH_MOTION: Wordings = {
    "train": (
        "which one {motion}?",
        "which video shows what {motion}?",
        "in which clip is something that {motion}?",
        "in which one is it that it {motion}?",
        "in which video do you see it: it {motion}?",
        "which of the two {motion}?",
        "what {motion}, the first or the second?",
        "is it the first or the second that {motion}?",
        "it {motion}, in which clip?",
        "and which one {motion}?",
        "so which of them {motion}?",
        "say which one {motion}",
        "tell me which of the two {motion}",
        "can you say which clip has what {motion}?",
        "i want to know which one {motion}",
        "find what {motion}: first or second?",
        "does one of them show what {motion}?",
        "is there one that {motion}?",
        "do both show what {motion}?",
        "who {motion}, the first or the second?",
        "which was the one that {motion}?",
    ),
    "held_out": ("in which video is what {motion}?", "which clip {motion}?"),
    "far": ("look at both and say to me in which of them it {motion}",),
}
ORDINALS = ("first", "second")


def pick(wordings: Wordings, wording: Wording, rng: np.random.Generator) -> str:
    """One of the wordings of a kind."""
    options = wordings[wording]
    return options[int(rng.integers(len(options)))]


def spoken(text: str, rng: np.random.Generator) -> str:
    """``text`` as somebody may type it: with a capital or without, with or without a stop."""
    if rng.random() < 0.15:
        text = text[:1].upper() + text[1:]
    return f"{text}." if text[-1] not in "?.!" and rng.random() < 0.15 else text


def ask_for_motion(motion: str, wording: Wording, rng: np.random.Generator) -> str:
    """What somebody says who wants the last clip again, with another ``motion``."""
    if motion == "stay":
        return pick(CHANGE_STAY, wording, rng)
    phrases = DIRECTION_PHRASES[motion] if motion in DIRECTIONS else BOUNCE_PHRASES[motion]
    wordings = CHANGE_DIRECTION if motion in DIRECTIONS else CHANGE_BOUNCE
    return pick(wordings, wording, rng).format(phrase=phrases[int(rng.integers(len(phrases)))])


def say_scene(scene: Scene) -> str:
    """What a scene shows: every sprite with its motion, and the background."""
    clauses = [f"{say_name(placed.sprite)} {say_motion(placed.motion)}" for placed in scene.sprites]
    return f"{' and '.join(clauses)} {say_place(scene)}"


def say_name(sprite: str) -> str:
    """The sprite with its article."""
    vowel = sprite[0] in "aeiou" and not sprite.startswith("uni")
    return f"{'an' if vowel else 'a'} {sprite}"


def say_motion(motion: str) -> str:
    """The motion as a verb of the third person."""
    if motion == "stay":
        return "stays still"
    return f"bounces {BOUNCE_PHRASES[motion][0]}" if motion in BOUNCES else f"moves {DIRECTION_PHRASES[motion][0]}"


def say_place(scene: Scene) -> str:
    """The background with its preposition."""
    return BACKGROUND_PHRASES[scene.background.name][0]


def say_comparison(first: str, second: str) -> str:
    """Which two motions are, and then whether they are the same: who says it first has to know before it was said."""
    verdict = "the same" if first == second else "not the same"
    return f"{_say_motions(first, second)}: {verdict}"


def say_which(first: str, second: str, sprite: str) -> str:
    """What two clips show, and then in which of them ``sprite`` is."""
    shown = f"the first shows {say_name(first)}, the second {say_name(second)}"
    return f"{shown}: the {sprite} is in {_say_where(first == sprite, second == sprite)}"


def say_which_motion(first: str, second: str, motion: str) -> str:
    """Which two motions are, and then in which of the clips ``motion`` is."""
    return f"{_say_motions(first, second)}: that is in {_say_where(first == motion, second == motion)}"


def _say_motions(first: str, second: str) -> str:
    return f"the first {say_motion(first)} and the second {say_motion(second)}"


def _say_where(first: bool, second: bool) -> str:
    if first and second:
        return "both"
    return f"the {ORDINALS[0]}" if first else f"the {ORDINALS[1]}" if second else "neither"
