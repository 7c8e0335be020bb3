"""The head of a continuous model while it is trained with its language model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tokvid.config import to_mapping
from tokvid.errors import ConfigError
from tokvid_lm.code_clips import LatentClips
from tokvid_lm.continuous import LatentHead, new_latent_head
from tokvid_lm.training_config import LMRecipe
from tokvid_lm.video_lm import VideoLM

_PART = "latent_head"
"""What it is called in checkpoints."""


def give_latent_head(recipe: LMRecipe, lm: VideoLM, clips: LatentClips) -> None:
    """What ``lm`` draws latents with, unless it has that; raises :class:`ConfigError` where that is another."""
    assert recipe.head is not None, "a recipe with a continuous codec says what its head is"
    wanted, head = to_mapping(recipe.head), lm.latent_head
    if head is None:
        lm.diffusion_head = new_latent_head(lm.model, recipe.head, *clips.statistics(), seed=recipe.seed)
    else:
        has = {name: getattr(head.config, name) for name in wanted}
        if has != wanted:
            raise ConfigError(f"the model that learns on has a head already: set head to {has}")
    lm.refinement = recipe.refinement


@contextmanager
def latent_head_in_model(lm: VideoLM) -> Iterator[LatentHead | None]:
    """Inside, the head of a continuous model is a part of its language model, and trained and kept with it."""
    head = lm.latent_head
    if head is None:
        yield None
        return
    lm.model.add_module(_PART, head)
    try:
        yield head
    finally:
        delattr(lm.model, _PART)
        head.float()  # DeepSpeed may have made its weights bfloat16, and it draws in float32
