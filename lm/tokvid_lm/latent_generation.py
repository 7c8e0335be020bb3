"""From prompts to the frames of videos that a continuous model draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokvid.errors import ModelError
from tokvid.grid import Grid
from tokvid_lm.continuous import LatentHead
from tokvid_lm.generation import Request, opened
from tokvid_lm.processor import codec_device
from tokvid_lm.samplers.latents import sample_latents
from tokvid_lm.samplers.runner import Runner, Way, sampling_from
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.segments import VideoSegment

if TYPE_CHECKING:
    from tokvid_lm.video_lm import VideoLM


def draw_latent_clips(
    lm: VideoLM,
    requests: Sequence[Request],
    sampling: Sampling,
    grid: Grid,
    num_frames: int,
    *,
    fps: float | None,
    batch_size: int,
    way: Way,
    progress: Callable[[int, int], None] | None,
) -> list[VideoSegment]:
    """A video of ``num_frames`` a request, with frames and no codes."""
    head = lm.latent_head
    if head is None:
        raise ModelError("this continuous model has no diffusion head yet: train it")
    answers: list[VideoSegment] = []
    for start in range(0, len(requests), batch_size):
        chunk = requests[start : start + batch_size]
        latents = _latents(lm, head, chunk, sampling, grid, num_frames, fps=fps, first=start, way=way)
        with torch.inference_mode():
            decoded = lm.codec.decode_latents(latents.to(codec_device(lm.codec)), num_frames=num_frames)
        answers += [
            VideoSegment(frames=frames, num_frames=num_frames, fps=fps, caption=request.caption)
            for request, frames in zip(chunk, decoded.clamp(-1.0, 1.0).cpu().split(1), strict=True)
        ]
        if progress is not None:
            progress(start + len(chunk), len(requests))
    return answers


def _latents(
    lm: VideoLM,
    head: LatentHead,
    requests: Sequence[Request],
    sampling: Sampling,
    grid: Grid,
    num_frames: int,
    *,
    fps: float | None,
    first: int,
    way: Way,
) -> Tensor:
    """Latents ``[rows,C,t,h,w]`` of samples that are numbered from ``first``."""
    canvas, prompts = opened(lm, requests, sampling, grid, num_frames, fps=fps)
    samples = torch.arange(first, first + len(requests))
    with sampling_from(lm.model, way.autocast):
        runner = Runner(lm.model, lm.head, prompts, len(canvas), positions=lm.positions, way=way)
        drawn = sample_latents(runner, canvas, head, lm.vocabulary.code_offset, sampling, lm.refinement, samples)
    by_cell = drawn[:, canvas.is_code]  # in the order of the layout
    return torch.cat([lm.layout.unflatten(part, grid, 1) for part in by_cell.unbind(-1)], dim=1)
