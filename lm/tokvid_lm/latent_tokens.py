"""A model that drew codes, made one that draws latents: what it knows of text, time and motion stays."""

from __future__ import annotations

from dataclasses import replace

import torch

from tokvid_lm.chat_tokens import tables
from tokvid_lm.continuous import codebooks_of
from tokvid_lm.video_lm import VideoLM
from tokvid_tokenizers import VideoCodec


def with_latents(lm: VideoLM, codec: VideoCodec) -> VideoLM:
    """``lm``, whose parts are changed, for a continuous ``codec``: the mean of its codes stands for any latent.

    It has no head yet.
    """
    codebook_size, num_codebooks = codebooks_of(codec)
    vocabulary = replace(lm.vocabulary, codebook_size=codebook_size, num_codebooks=num_codebooks, factors=())
    start = vocabulary.code_offset
    with torch.no_grad():
        for table in tables(lm.model):  # the first is a tied head's too
            table[start] = table[start:].float().mean(0).to(table)
    lm.model.resize_token_embeddings(vocabulary.total_size, mean_resizing=False)
    return VideoLM(
        lm.model,
        lm.tokenizer,
        vocabulary,
        codec,
        template=lm.template.kind,
        layout=lm.layout.kind,
        positions=lm.positions.kind,
        settings=lm.settings,
    )
