"""Drawing from held-out captions and letting the oracle judge: the same for the demo and for ``tokvid train``.

Only the sprite world has an oracle; clips of other data are drawn where somebody wants to look at them, and not judged:
:func:`prompts_to_show` chooses their captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tokvid.cli.progress import counted
from tokvid.data.clip_source import spread
from tokvid.data.clips import DataConfig, SpriteDataConfig

if TYPE_CHECKING:
    from tokvid.data.clips import ClipArray
    from tokvid.data.sprites.oracle import Oracle
    from tokvid_lm.training import TrainedLM
    from tokvid_lm.training_config import LMRecipe

Pictures = npt.NDArray[np.uint8]
# Reconstructions that are judged at most: enough for an interval of a few percent, and a few seconds.
MOST_RECONSTRUCTIONS = 256
TRAINED, NEW = "a caption of training clips", "a new caption"


@dataclass(frozen=True, kw_only=True)
class JudgedClip:
    """What the oracle says of one clip, in words, and whether all that its caption names is right."""

    right: bool
    seen: str


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Clips uint8 ``[N,T,H,W,3]`` drawn from ``prompts``; with an oracle, its verdicts and the counts.

    ``notes``: something to say of each clip, or nothing.
    """

    prompts: list[str]
    clips: Pictures
    judged: list[JudgedClip] | None
    figures: dict[str, Any]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A caption to draw from, and whether a model was trained on it (``note``)."""

    caption: str
    note: str


def make_oracle(config: object) -> Oracle | None:
    """The oracle of the sprite world; None for other data."""
    if not isinstance(config, SpriteDataConfig):
        return None
    from tokvid.data.sprites.oracle import Oracle
    from tokvid.data.sprites.world import SpriteWorldConfig

    return Oracle(SpriteWorldConfig(size=config.size, num_frames=config.num_frames, fps=config.fps))


def judge_reconstructions(config: DataConfig, captions: Sequence[str], pictures: Pictures) -> dict[str, Any]:
    """``sprite``: in how many reconstructions uint8 ``[N,T,H,W,3]`` the oracle sees every sprite that is named.

    Of the first :data:`MOST_RECONSTRUCTIONS`. Nothing where the data has no oracle.
    """
    oracle = make_oracle(config)
    if oracle is None:
        return {}
    from tokvid.data.sprites.verdicts import judge_clips

    judged = judge_clips(oracle, captions[:MOST_RECONSTRUCTIONS], pictures[:MOST_RECONSTRUCTIONS])
    return {"sprite": judged.proportions["sprite"].figures()}


def oracle_of(clips: ClipArray) -> Oracle:
    """The oracle for clips of the sprite world of this shape."""
    from tokvid.data.sprites.oracle import Oracle
    from tokvid.data.sprites.world import SpriteWorldConfig

    _, num_frames, height, width = clips.frames.shape[:4]
    return Oracle(SpriteWorldConfig(size=(height, width), num_frames=num_frames, fps=clips.fps))


def judge(oracle: Oracle, captions: Sequence[str], pictures: Pictures) -> tuple[dict[str, Any], list[JudgedClip]]:
    """What the oracle sees in clips uint8 ``[N,T,H,W,3]``: counts of what is right, and of each clip."""
    from tokvid.data.sprites.verdicts import describe, judge_clips

    verdicts = judge_clips(oracle, captions, pictures)
    judged = [
        JudgedClip(right=verdict.all, seen=describe(sight))
        for verdict, sight in zip(verdicts.verdicts, verdicts.sights, strict=True)
    ]
    return verdicts.figures(), judged


def prompts_to_show(train: Sequence[str], held_out: Sequence[str], count: int) -> list[Prompt]:
    """``count`` captions to look at, of clips that nobody counts: new ones and those of training clips by turns.

    Different captions as far as there are, spread over each split (neighbours in a folder are alike), and then the
    same once more. Empty captions are left out; one of ``train`` must not be empty.
    """
    trained = list(dict.fromkeys(caption for caption in train if caption))
    new = list(dict.fromkeys(caption for caption in held_out if caption and caption not in trained))
    new = [new[number] for number in spread(len(new), max(count // 2, count - len(trained)))]
    trained = [trained[number] for number in spread(len(trained), count - len(new))]
    chosen: list[Prompt] = []
    for position in range(max(len(new), len(trained))):
        chosen += [Prompt(caption=caption, note=NEW) for caption in new[position : position + 1]]
        chosen += [Prompt(caption=caption, note=TRAINED) for caption in trained[position : position + 1]]
    return [chosen[number % len(chosen)] for number in range(count)]


def generate(trained: TrainedLM, recipe: LMRecipe, *, show: Sequence[Prompt] | None = None) -> Generation:
    """Draw clips from as many held-out captions as the recipe asks for, or from those to ``show``.

    Where the recipe's data has an oracle, it judges them.
    """
    from tokvid_lm.evaluation import draw_clips

    config, held_out = recipe.evaluation, trained.held_out
    prompts = list(held_out.captions[: config.clips]) if show is None else [prompt.caption for prompt in show]
    notes = [""] * len(prompts) if show is None else [prompt.note for prompt in show]
    with counted("drawing") as progress:
        drawn = draw_clips(
            trained.lm,
            prompts,
            seed=recipe.seed,
            batch_size=config.batch_size,
            progress=progress,
        )
    figures: dict[str, Any] = {"clips": len(prompts), "clips_per_second": len(prompts) / drawn.seconds}
    judged: list[JudgedClip] | None = None
    oracle = make_oracle(recipe.data)
    if oracle is not None:
        counts, judged = judge(oracle, prompts, drawn.frames)
        figures |= counts
    return Generation(prompts=prompts, clips=drawn.frames, judged=judged, figures=figures, notes=notes)
