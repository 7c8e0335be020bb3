"""Dialogues over the sprite world: describe a clip, draw one, change or continue the last one, compare two.

A dialogue is a function of (seed, split, index) alone. The split ``held_out`` has wordings and sprite-motion
combinations that the split ``train`` never has. It knows no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from tokvid.data.clip import Split
from tokvid.data.dialogue import Dialogue, DialogueSource, DialogueTurn, Speaker
from tokvid.data.sprites import dialogue_words as words
from tokvid.data.sprites.backgrounds import Background, draw_background
from tokvid.data.sprites.captions import CaptionFacts, parse_caption, write_caption
from tokvid.data.sprites.dialogue_answers import AnswerKind, Asked
from tokvid.data.sprites.motions import DIRECTIONS, MOTIONS, Ints, combinations, draw_paths, is_held_out
from tokvid.data.sprites.scene import Scene, SpritePlacement
from tokvid.data.sprites.sheet import SPRITES
from tokvid.data.sprites.world import ONE_SPRITE_SIZE, SpriteWorld, SpriteWorldConfig

# Training leans to what is learned last: what is continued, told apart, and drawn after other clips.
_PLANS: Mapping[Split, Mapping[str, float]] = {
    "train": {
        "draw": 0.06,
        "describe": 0.04,
        "newest": 0.12,
        "continue": 0.1,
        "compare": 0.28,
        "mixed": 0.06,
        "chain": 0.06,
        "another": 0.28,
    },
    "held_out": {
        "draw": 0.14,
        "describe": 0.12,
        "newest": 0.1,
        "continue": 0.12,
        "compare": 0.24,
        "mixed": 0.08,
        "chain": 0.08,
        "another": 0.12,
    },
}
_MOST_QUESTIONS: Mapping[Split, int] = {"train": 6, "held_out": 2}  # about two clips
_ASKS_ON: Mapping[Split, float] = {"train": 0.85, "held_out": 0.5}  # is how likely one more question follows
_ASKS_IN_VAIN = 0.25  # is how likely "which of them" asks for something that is in neither
_LONG_WAY = 0.45  # of the frame's side: what is to be continued travels so far in both clips together
_CANDIDATES = 48


@dataclass(frozen=True, kw_only=True)
class SpriteDialogue:
    """A dialogue, its scenes, and what each turn of the assistant is asked for."""

    dialogue: Dialogue
    scenes: tuple[Scene, ...]
    asked: tuple[Asked, ...]


class SpriteDialogues(DialogueSource):
    """``count`` dialogues of one split; they are made anew at each call, the same every time.

    Those that are ``far`` have wordings unlike any of training.
    """

    def __init__(self, config: SpriteWorldConfig, split: Split, count: int, *, far: bool = False) -> None:
        self.config, self.split, self.count = config, split, count
        self.wording: words.Wording = "far" if far else split
        self.size, self.num_frames, self.fps = config.size, config.num_frames, config.fps
        self._world = SpriteWorld(config)

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> Dialogue:
        return self.made(index).dialogue

    def made(self, index: int) -> SpriteDialogue:
        """Dialogue ``index`` with what is judged."""
        if not 0 <= index < self.count:
            raise IndexError(f"there are dialogues 0 to {self.count - 1}, got {index}")
        entropy = (self.config.seed, get_args(Split).index(self.split), index, _PURPOSE)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
        script = _Script(self._world, self.split, self.wording, index, rng)
        plans = _PLANS[self.split]
        plan = tuple(plans)[int(rng.choice(len(plans), p=list(plans.values())))]
        getattr(script, f"plan_{plan}")()
        return script.finish()

    def digest(self) -> str:
        return hashlib.sha256(repr((self.config, self.split, self.wording, self.count)).encode()).hexdigest()


_PURPOSE = 2  # after the scenes and captions of the world itself


@dataclass
class _Script:
    """A dialogue that is being written."""

    world: SpriteWorld
    split: Split
    wording: words.Wording
    index: int
    rng: np.random.Generator
    turns: list[DialogueTurn] = field(default_factory=list)
    scenes: list[Scene] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    answers: set[tuple[str, str]] = field(default_factory=set)  # to questions about two clips, by the question's kind

    def finish(self) -> SpriteDialogue:
        clips = tuple(self.world.render(scene) for scene in self.scenes)
        dialogue = Dialogue(turns=tuple(self.turns), clips=clips)
        return SpriteDialogue(dialogue=dialogue, scenes=tuple(self.scenes), asked=tuple(self.asked))

    # What happens in a dialogue, from the first turn to the last.

    def plan_draw(self) -> None:
        """Draw, and perhaps change what was drawn."""
        if self._by_chance(0.5):
            self._draw(self.world.scene(self.index, split=self.split))
            return
        first, second = self._changed_pair()
        self._draw(first)
        self._change(second)

    def plan_describe(self) -> None:
        """Describe, and perhaps change what was shown."""
        if self._by_chance(0.5):
            self._describe(self.world.scene(self.index, split=self.split))
            return
        first, second = self._changed_pair()
        self._describe(first)
        self._change(second)

    def plan_newest(self) -> None:
        """Describe the newest of several clips, whether it was shown or drawn; an answer about another is wrong."""
        first, second = self._two_scenes()
        if self._by_chance(0.6):
            (self._draw if self._by_chance(0.5) else self._describe)(first)
            self._describe(second)
        else:
            self._draw(first)
            self._describe(first, "again")
            if self._by_chance(0.5):
                self._change(self._with_motion(first, self._other_motion(first)))
                self._describe(self.scenes[-1], "again")
            else:
                self._describe(second)

    def plan_continue(self) -> None:
        """Continue what was shown, or drawn."""
        first, second = self._continued_pair()
        if self._by_chance(0.6):
            self._say("user", self._show(first, self._words(words.CONTINUE)))
            self._answer_with_clip("continue", second)
            return
        (self._draw if self._by_chance(0.5) else self._describe)(first)
        self._say("user", (self._words(words.CONTINUE),))
        self._answer_with_clip("continue", second)

    def plan_compare(self) -> None:
        """Questions about two clips, shown together or one after the other."""
        first, second = self._two_scenes()
        if self._by_chance(0.6):
            pieces = (self._number(first), self._number(second))
            self._ask(pieces)
        else:
            self._describe(first)
            self._ask((self._number(second),))
        for _ in range(1, _MOST_QUESTIONS[self.split]):
            if not self._by_chance(_ASKS_ON[self.split]):
                break
            self._ask(())
        if self._by_chance(0.25):
            self._describe(second, "again")

    def plan_mixed(self) -> None:
        """Draw, change, and a question about the two."""
        first, second = self._changed_pair()
        self._draw(first)
        self._change(second)
        self._ask(())

    def plan_another(self) -> None:
        """Draw something else than what was shown or drawn before, and perhaps change it."""
        first, _ = self._two_scenes()
        second, third = self._changed_pair()
        (self._draw if self._by_chance(0.4) else self._describe)(first)
        self._draw(second)
        if self._by_chance(0.4):
            self._change(third)
        if self._by_chance(0.4):
            self._ask(())

    def plan_chain(self) -> None:
        """A clip that changes twice, and perhaps a question about the first two."""
        first, second = self._changed_pair()
        (self._draw if self._by_chance(0.5) else self._describe)(first)
        self._change(second)
        self._change(self._with_motion(second, self._other_motion(second)))
        if self._by_chance(0.4):
            self._ask(())

    # One exchange each: what the user says, and the answer.

    def _draw(self, scene: Scene) -> None:
        caption = write_caption(scene, self.rng)
        self._say("user", (self._words(words.DRAW, caption=caption),))
        self._answer_with_clip("draw", scene, facts=parse_caption(caption))

    def _describe(self, scene: Scene, kind: Literal["describe", "again"] = "describe") -> None:
        """Describe a clip that is shown with the question, or ``again`` the one that was shown or drawn last."""
        question = self._words(words.DESCRIBE)
        self._say("user", self._show(scene, question) if kind == "describe" else (question,))
        text = words.say_scene(scene)
        self._answer(Asked(kind=kind, text=text, facts=parse_caption(text)))

    def _change(self, scene: Scene) -> None:
        text = words.ask_for_motion(scene.sprites[0].motion, self.wording, self.rng)
        self._say("user", (words.spoken(text, self.rng),))
        self._answer_with_clip("change", scene)

    def _ask(self, shown: tuple[int, ...]) -> None:
        """A question about the first two clips, after clips that are ``shown``. Training asks nothing twice."""
        question, answer = self._question()
        while self.split == "train" and answer in self.answers:
            question, answer = self._question()
        self.answers.add(answer)
        self._say("user", (*shown, question))
        self._answer(Asked(kind="question", text=answer[1]))

    def _question(self) -> tuple[str, tuple[str, str]]:
        """What is asked about the first two clips, and the answer with its kind."""
        first, second = (scene.sprites[0] for scene in self.scenes[:2])
        number = int(self.rng.integers(2))
        scene, which = self.scenes[number], words.ORDINALS[number]
        placed = scene.sprites[0]
        concluded = ("same", "which", "which_motion")  # from both clips
        kinds = ("what", "how", "where", *concluded, *(concluded if self.split == "train" else ()))
        kind = kinds[int(self.rng.integers(len(kinds)))]
        if kind == "what":
            question, answer = self._words(words.WHAT, which=which), words.say_name(placed.sprite)
        elif kind == "how":
            question, answer = self._words(words.HOW, which=which), f"it {words.say_motion(placed.motion)}"
        elif kind == "where":
            question, answer = self._words(words.WHERE, which=which), words.say_place(scene)
        elif kind == "same":
            question, answer = self._words(words.SAME), words.say_comparison(first.motion, second.motion)
        elif kind == "which":
            sprite = self._one_of(SPRITES) if self._by_chance(_ASKS_IN_VAIN) else placed.sprite
            question = self._words(words.WHICH, sprite=sprite)
            answer = words.say_which(first.sprite, second.sprite, sprite)
        else:
            motion = self._one_of(MOTIONS) if self._by_chance(_ASKS_IN_VAIN) else placed.motion
            question = self._words(words.WHICH_MOTION, motion=words.say_motion(motion))
            answer = words.say_which_motion(first.motion, second.motion, motion)
        return question, (kind if kind not in ("what", "how", "where") else f"{kind} {which}", answer)

    def _one_of(self, names: Sequence[str]) -> str:
        return names[int(self.rng.integers(len(names)))]

    def _answer_with_clip(self, kind: AnswerKind, scene: Scene, facts: CaptionFacts | None = None) -> None:
        """Say what will be seen, and then show it."""
        text = words.say_scene(scene)
        begins = None
        if kind == "continue":
            (placed,) = scene.sprites
            top, left = placed.path[0]
            begins = (top + placed.size / 2, left + placed.size / 2)
        asked = Asked(kind=kind, text=text, facts=facts or parse_caption(text), begins=begins)
        self._answer(asked, self._number(scene))

    def _answer(self, asked: Asked, *clip: int) -> None:
        self.asked.append(asked)
        self._say("assistant", (asked.text, *clip))

    def _say(self, role: Speaker, pieces: tuple[str | int, ...]) -> None:
        self.turns.append(DialogueTurn(role=role, pieces=pieces))

    def _show(self, scene: Scene, text: str) -> tuple[str | int, ...]:
        number = self._number(scene)
        return (number, text) if self._by_chance(0.5) else (text, number)

    def _number(self, scene: Scene) -> int:
        self.scenes.append(scene)
        return len(self.scenes) - 1

    def _words(self, wordings: words.Wordings, **parts: str) -> str:
        return words.spoken(words.pick(wordings, self.wording, self.rng).format(**parts), self.rng)

    def _by_chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    # Scenes of one sprite.

    def _combination(self) -> tuple[str, str]:
        pairs = combinations(self.split)
        return pairs[int(self.rng.integers(len(pairs)))]

    def _scene(self, sprite: str, motion: str) -> Scene:
        """A new scene."""
        side = min(self.world.config.size)
        size = round(side * float(self.rng.uniform(*ONE_SPRITE_SIZE)))
        return self._placed(sprite, motion, size, draw_background(self.rng))

    def _placed(self, sprite: str, motion: str, size: int, background: Background) -> Scene:
        config = self.world.config
        path = draw_paths(motion, config.size, size, config.num_frames, 1, self.rng)[0]
        return self._of_path(sprite, motion, size, background, path)

    def _of_path(self, sprite: str, motion: str, size: int, background: Background, path: Ints) -> Scene:
        config = self.world.config
        placed = SpritePlacement(
            sprite=sprite, motion=motion, size=size, path=tuple((top, left) for top, left in path.tolist())
        )
        return Scene(background=background, sprites=(placed,), size=config.size, num_frames=config.num_frames)

    def _with_motion(self, scene: Scene, motion: str) -> Scene:
        """The same sprite, as large, over the same ground, in another motion."""
        placed = scene.sprites[0]
        return self._placed(placed.sprite, motion, placed.size, scene.background)

    def _changed_pair(self) -> tuple[Scene, Scene]:
        """A scene, and the same with a motion of this split."""
        sprite, motion = self._combination()
        second = self._scene(sprite, motion)
        return self._with_motion(second, self._other_motion(second)), second

    def _other_motion(self, scene: Scene) -> str:
        """Another motion for the sprite of a scene, of this split where it has one."""
        placed = scene.sprites[0]
        others = [motion for motion in MOTIONS if motion != placed.motion]
        held_out = self.split == "held_out"
        own = [motion for motion in others if is_held_out(placed.sprite, motion) == held_out]
        options = own or others
        return options[int(self.rng.integers(len(options)))]

    def _continued_pair(self) -> tuple[Scene, Scene]:
        """The two halves of a straight way; the second begins where the first ends."""
        pairs = [pair for pair in combinations(self.split) if pair[1] in DIRECTIONS]
        sprite, motion = pairs[int(self.rng.integers(len(pairs)))]
        config, side = self.world.config, min(self.world.config.size)
        size = round(side * float(self.rng.uniform(*ONE_SPRITE_SIZE)))
        count = 2 * config.num_frames - 1
        moves = np.array(DIRECTIONS[motion]) != 0
        while True:
            paths = draw_paths(motion, config.size, size, count, _CANDIDATES, self.rng)
            far = np.abs(paths[:, -1] - paths[:, 0])[:, moves].min(axis=1) >= _LONG_WAY * side
            if far.any():
                path = paths[int(far.argmax())]
                break
        background = draw_background(self.rng)
        halves = (path[: config.num_frames], path[config.num_frames - 1 :])
        first, second = (self._of_path(sprite, motion, size, background, half) for half in halves)
        return first, second

    def _two_scenes(self) -> tuple[Scene, Scene]:
        """Two scenes; in some of them the motion, or the sprite, is the same."""
        first = self._scene(*self._combination())
        placed, chance = first.sprites[0], self.rng.random()
        pairs = combinations(self.split)
        if chance < 0.3:
            pairs = tuple(pair for pair in pairs if pair[1] == placed.motion)
        elif chance < 0.5:
            pairs = tuple(pair for pair in pairs if pair[0] == placed.sprite)
        return first, self._scene(*pairs[int(self.rng.integers(len(pairs)))])
