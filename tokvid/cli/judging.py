"""Drawing from held-out captions and letting the oracle judge: the same for the demo and for ``tokvid train``.

Only the sprite world has an oracle; clips of other data are drawn where somebody wants to look at them, and not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tokvid.cli.progress import counted
from tokvid.data.clips import DataConfig, SpriteDataConfig

if TYPE_CHECKING:
    from tokvid.data.sprites.oracle import Oracle
    from tokvid_lm.training import TrainedLM
    from tokvid_lm.training_config import LMRecipe

Pictures = npt.NDArray[np.uint8]
# Reconstructions that are judged at most: enough for an interval of a few percent, and a few seconds.
MOST_RECONSTRUCTIONS = 256


@dataclass(frozen=True, kw_only=True)
class JudgedClip:
    """What the oracle says of one clip, in words, and whether all that its caption names is right."""

    right: bool
    seen: str


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Clips uint8 ``[N,T,H,W,3]`` drawn from ``prompts``; with an oracle, its verdicts and the counts."""

    prompts: list[str]
    clips: Pictures
    judged: list[JudgedClip] | None
    figures: dict[str, Any]


def make_oracle(config: DataConfig) -> Oracle | None:
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


def generate(trained: TrainedLM, recipe: LMRecipe, *, clips: int | None = None) -> Generation:
    """Draw ``clips`` clips from held-out captions (default: what the recipe asks for) and let an oracle judge them."""
    from tokvid_lm.evaluation import draw_clips

    config, held_out = recipe.evaluation, trained.held_out
    prompts = list(held_out.captions[: config.clips if clips is None else clips])
    with counted("drawing") as progress:
        drawn = draw_clips(
            trained.lm,
            prompts,
            config.sampling(recipe.seed),
            num_frames=held_out.num_frames,
            height=held_out.height,
            width=held_out.width,
            batch_size=config.batch_size,
            progress=progress,
        )
    figures: dict[str, Any] = {"clips": len(prompts), "clips_per_second": len(prompts) / drawn.seconds}
    oracle = make_oracle(recipe.data)
    judged: list[JudgedClip] | None = None
    if oracle is not None:
        from tokvid.data.sprites.verdicts import describe, judge_clips

        verdicts = judge_clips(oracle, prompts, drawn.frames)
        figures |= verdicts.figures()
        judged = [
            JudgedClip(right=verdict.all, seen=describe(sight))
            for verdict, sight in zip(verdicts.verdicts, verdicts.sights, strict=True)
        ]
    return Generation(prompts=prompts, clips=drawn.frames, judged=judged, figures=figures)
