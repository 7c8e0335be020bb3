"""What a language model in training draws so far: held-out clips beside what it makes of their captions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from tokvid.data.clip_source import spread
from tokvid.frames import to_pictures
from tokvid.report.pictures import Picture, Pictures, contact_sheet, side_by_side
from tokvid.runtime import evaluation_mode
from tokvid_lm.code_clips import LatentClips
from tokvid_lm.code_source import CodeSource
from tokvid_lm.mask_spec import BLOCKS
from tokvid_lm.segments import TextSegment, VideoSegment
from tokvid_lm.video_lm import VideoLM


def sample_sheet(lm: VideoLM, clips: CodeSource, count: int, *, autocast: torch.dtype | None = None) -> Picture | None:
    """A contact sheet of ``count`` of ``clips`` (all, where there are fewer), uint8 ``[H,W,3]``: each as its codes
    decode, and drawn from its caption in the model's default mode, with the same noise each time. None for a
    model of actions where no clip has any."""
    known = [number for number in range(len(clips)) if clips.has_actions(number) or not lm.vocabulary.num_actions]
    chosen = [known[place] for place in spread(len(known), count)]
    with _as_loaded(lm.model), evaluation_mode(lm.model):
        pairs = [_pair(lm, clips, number, autocast) for number in chosen]
    return contact_sheet(pairs, [clips.captions[number] for number in chosen]) if pairs else None


def _pair(lm: VideoLM, clips: CodeSource, number: int, autocast: torch.dtype | None) -> Pictures:
    grid, num_frames = clips.grid_of(number), clips.num_frames_of(number)
    answers = lm.generate(
        [TextSegment(clips.captions[number])],
        num_frames=num_frames,
        height=grid.h * lm.codec.spatial_stride,
        width=grid.w * lm.codec.spatial_stride,
        fps=clips.fps_of(number),
        actions=clips.actions_of(number) if lm.vocabulary.num_actions else None,
        candidates=1,  # a model that is being trained is no judge yet
        seed=number,
        autocast=autocast,
    )
    (drawn,) = (answer.frames for answer in answers if isinstance(answer, VideoSegment))
    assert drawn is not None
    device = next(lm.codec.parameters()).device
    with torch.inference_mode():
        if isinstance(clips, LatentClips):
            original = lm.codec.decode_latents(clips.latents[number][None].to(device), num_frames).clamp(-1.0, 1.0)
        else:
            original = lm.codec.decode(clips.codes_of(number)[None].to(device), num_frames)
    return side_by_side(*(to_pictures(frames)[0] for frames in (original.cpu(), drawn)))


@contextmanager
def _as_loaded(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a ``model`` in training answers as one that was loaded: with logits, and from a cache."""
    # The loss stands in its place, and what accelerate has put around that.
    forward = model.__dict__.pop("forward", None)
    attention = model.config._attn_implementation
    if attention == BLOCKS:  # has no cache
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if forward is not None:
            model.forward = forward
        if attention == BLOCKS:
            model.set_attn_implementation(attention)
