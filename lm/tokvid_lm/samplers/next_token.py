"""Next-token sampling: one id after the other, of text or of the codes of videos.

Conditional and unconditional rows of classifier-free guidance run as one batch. Only the columns that a place may
hold are computed. What is given (separators, actions, known cells) is fed together with the code before it, so that a
video takes one pass a wanted code.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tokvid.guidance import guide
from tokvid.noise import uniform
from tokvid_lm.positions import Coordinates
from tokvid_lm.samplers.canvas import Canvas
from tokvid_lm.samplers.runner import Rows
from tokvid_lm.samplers.sampling import Sampling, draw
from tokvid_lm.vocabulary import VideoVocabulary


def sample_codes(
    runner: Rows,
    canvas: Canvas,
    vocabulary: VideoVocabulary,
    sampling: Sampling,
    sample_indices: Tensor,
) -> Iterator[tuple[int, Tensor]]:
    """Draw every wanted code in the order of the sequence; ``(latent frame, ids [rows,L])`` after each finished frame.

    The rows of ``canvas`` are as many as ``sample_indices`` ``[rows]``. With guidance the runner has twice as many, the
    conditional ones first. Noise is a function of the seed, the sample and the place.
    """
    rows = len(canvas.ids)
    ids = canvas.ids.clone()
    places = canvas.wanted.any(0).nonzero().squeeze(1).tolist()
    frames, slots = canvas.frame.tolist(), canvas.slot.tolist()
    noise = uniform(sampling.seed, sample_indices[:, None], torch.arange(len(canvas))[None])
    place_ids = runner.place_ids(canvas.coordinates(runner.lengths, slice(0, len(canvas))))
    features = runner.prefill()
    fed, frame = 0, frames[places[0]] if places else -1
    for place in places:
        if frames[place] != frame:
            yield frame, ids
            frame = frames[place]
        if place > fed:
            part = slice(fed, place)
            features = runner.feed(canvas.fed(ids, part, sampling), place_ids[..., part])[:, -1:]
            fed = place
        wanted = vocabulary.slot_range(slots[place])
        logits = runner.logits(features[:, 0], wanted.start, wanted.stop)
        if sampling.guided:
            logits = guide(logits[:rows], logits[rows:], sampling.guidance_scale)
        drawn = draw(logits, noise[:, place].to(logits.device), sampling).cpu() + wanted.start
        ids[:, place] = torch.where(canvas.wanted[:, place], drawn, ids[:, place])
    if places:
        yield frame, ids


def sample_text(
    runner: Rows,
    allowed: Tensor,
    end_ids: list[int],
    sampling: Sampling,
    sample_indices: Tensor,
    *,
    max_new_tokens: int,
) -> Iterator[Tensor]:
    """Draw up to ``max_new_tokens`` ids a row; ``[rows]`` at each step, the first end id over and over once a row has
    ended.

    ``allowed`` bool ``[columns]`` are the ids that may be drawn, the end ids among them.
    """
    rows = len(sample_indices)
    ends = torch.tensor(end_ids, dtype=torch.int64)
    pad = end_ids[0] if end_ids else 0
    finished = torch.zeros(rows, dtype=torch.bool)
    features = runner.prefill()
    for step in range(max_new_tokens):
        logits = runner.logits(features[:, -1], 0, len(allowed))
        logits = logits.masked_fill(~allowed.to(logits.device), float("-inf"))
        noise = uniform(sampling.seed, sample_indices, torch.tensor(step)).to(logits.device)
        drawn = draw(logits, noise, sampling).cpu().masked_fill(finished, pad)
        yield drawn
        finished = finished | torch.isin(drawn, ends)
        if bool(finished.all()) or step + 1 == max_new_tokens:
            return
        features = runner.feed(drawn[:, None], runner.place_ids(text_place((runner.lengths + step)[:, None])))


def text_place(index: Tensor) -> Coordinates:
    """Where ids of text stand, ``index`` ``[rows,n]`` being their places in their documents."""
    nothing = torch.zeros_like(index)
    return Coordinates(index=index, cell=nothing[..., None].expand(-1, -1, 3), start=nothing, is_content=nothing.bool())
