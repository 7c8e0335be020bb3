"""A tiny model that talks: what the tests of conversations share."""

from __future__ import annotations

import functools

import torch

from tests.lm.tiny import build_model, build_tokenizer
from tokvid_lm import VideoLM
from tokvid_lm.positions import PositionKind
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.video_settings import VideoSettings
from tokvid_lm.vocabulary import END_OF_TURN, MODES
from tokvid_tokenizers import load_codec

LETTERS = "abcdefghijklmnopqrstuvwxyz ,.!?"
SETTINGS = VideoSettings(
    about="dots that move",
    sampling=tuple(Sampling(mode=mode, steps=3) for mode in MODES),
    num_frames=5,
    height=16,
    width=16,
    fps=8.0,
)


@functools.cache
def build(
    family: str = "llama",
    *,
    positions: PositionKind = "1d",
    context: int = 512,
    draws: bool = True,
    letters: bool = True,
    also: tuple[int, ...] = (),
) -> VideoLM:
    """A model that is likely to draw a video (never without ``draws``) and to end its turn, and says ``letters``, and
    ``also`` these ids.

    The rows of its head say so: one that is longer is drawn or shunned more often, one of zeros is never among the
    likeliest.
    """
    model = build_model(family, max_position_embeddings=context)
    codec = load_codec("preset:tiny")
    lm = VideoLM.extend(model, codec=codec, tokenizer=build_tokenizer(), positions=positions, chat=True)
    lm.settings = SETTINGS
    head = lm.model.get_output_embeddings().weight
    said = {*also} | {token for letter in LETTERS for token in lm.processor.encode_text(letter)}
    with torch.no_grad():
        if letters:
            head[[token for token in range(lm.vocabulary.text_size) if token not in said]] = 0
        head[lm.vocabulary.open_id] *= 4 if draws else 0
        head[lm.vocabulary.special[END_OF_TURN]] *= 3
    return lm
