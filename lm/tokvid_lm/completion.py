"""Completing clips: what a model makes of a clip that it sees a part of, held against a guess that costs nothing.

Nothing here trains, and nothing knows what is on the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokvid.errors import ShapeError
from tokvid.frames import to_model, to_pictures
from tokvid.grid import Grid
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.segments import Segment, TextSegment, VideoSegment
from tokvid_lm.tasks import both_ends, first_frames, inside_box
from tokvid_lm.video_lm import VideoLM

Pictures = npt.NDArray[np.uint8]
Hidden = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Completion:
    """Clips uint8 ``[N,T,H,W,3]`` completed in ``mode``, and their ``guesses``; ``hidden`` pixels ``[T,H,W]`` count.

    ``psnr`` and ``guess_psnr``: dB over the hidden pixels of all clips together (so that clips in which nothing moves,
    which a guess gets exactly right, stay finite).
    """

    task: str
    mode: str
    frames: Pictures
    guesses: Pictures
    hidden: Hidden
    psnr: float
    guess_psnr: float


def complete_clips(
    lm: VideoLM,
    clips: Pictures,
    captions: Sequence[str],
    *,
    task: str,
    mode: str,
    fps: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Completion:
    """Hide a part of clips uint8 ``[N,T,H,W,3]``, let the model draw it, and guess it.

    ``fps`` is the clips' rate (default: that of the model's clips). ``task`` is a name of :data:`COMPLETIONS`. What is
    hidden is replaced by the guess before the codec encodes the clip, so that no given cell has seen it. Codes are
    drawn as :func:`surely` says: what is drawn is held against the one clip that there is.
    """
    if task not in COMPLETIONS:
        raise ShapeError(f"a completion is one of {', '.join(COMPLETIONS)}, got {task!r}")
    known_of, guess = COMPLETIONS[task]
    known = known_of(lm.codec.grid_for(*clips.shape[1:4]))
    hidden = hidden_pixels(known, clips.shape[1], strides=(lm.codec.temporal_stride, lm.codec.spatial_stride))
    guesses = guess(clips, hidden)
    device = next(lm.codec.parameters()).device
    prompts: list[list[Segment]] = [
        [
            TextSegment(caption),
            VideoSegment(frames=to_model(clip[None]).to(device), known=known),
        ]
        for caption, clip in zip(captions, guesses, strict=True)
    ]
    drawn = lm.generate(
        prompts,
        mode=mode,
        num_frames=clips.shape[1],
        fps=fps,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
        **surely(lm.sampling_for(mode)),
    )
    frames = np.concatenate([to_pictures(clip.frames) for clip in drawn if isinstance(clip, VideoSegment)])  # type: ignore[arg-type]
    return Completion(
        task=task,
        mode=mode,
        frames=frames,
        guesses=guesses,
        hidden=hidden,
        psnr=_psnr(clips, frames, hidden),
        guess_psnr=_psnr(clips, guesses, hidden),
    )


def surely(sampling: Sampling) -> dict[str, Any]:
    """Settings for :meth:`VideoLM.generate` where the likeliest video is wanted and not one of many: a low temperature,
    little guidance, one candidate, and of the masked modes the surest codes first."""
    settings = {"temperature": 0.5, "guidance_scale": min(2.0, sampling.guidance_scale), "candidates": 1}
    return settings if sampling.mode == "next_token" else {**settings, "choice_temperature": 0.0}


def hidden_pixels(known: Tensor, num_frames: int, *, strides: tuple[int, int]) -> Hidden:
    """The pixels bool ``[T,H,W]`` of the cells that are not ``known`` ``[t,h,w]``; ``strides`` in time and space.

    The first latent frame holds one frame, each other one ``strides[0]``.
    """
    times = torch.tensor([1] + [strides[0]] * (len(known) - 1))
    pixels = (~known.cpu()).repeat_interleave(strides[1], 1).repeat_interleave(strides[1], 2)
    return pixels.repeat_interleave(times, 0)[:num_frames].numpy()


def copy_last(clips: Pictures, hidden: Hidden) -> Pictures:
    """Hidden frames are the last frame before them."""
    first = int(np.flatnonzero(hidden.any((1, 2)))[0])
    return np.where(hidden[None, ..., None], clips[:, first - 1 : first], clips)


def blend(clips: Pictures, hidden: Hidden) -> Pictures:
    """Hidden frames are blends of the last frame before and the first after them, by their times."""
    frames = np.flatnonzero(hidden.any((1, 2)))
    before, after = int(frames[0]) - 1, int(frames[-1]) + 1
    guesses = clips.copy()
    for frame in frames.tolist():
        share = (frame - before) / (after - before)
        mixed = clips[:, before] * (1 - share) + clips[:, after] * share
        guesses[:, frame] = np.rint(mixed).astype(np.uint8)
    return guesses


def mean_colour(clips: Pictures, hidden: Hidden) -> Pictures:
    """Hidden pixels are the mean of the given ones of their frame."""
    given = ~hidden[None, ..., None]
    means = (clips * given).sum((2, 3), keepdims=True) / given.sum((2, 3), keepdims=True)
    return np.where(given, clips, np.rint(means).astype(np.uint8))


def _half(grid: Grid) -> Tensor:
    """All but a box of half the height and half the width, in the middle of every frame."""
    height, width = max(1, grid.h // 2), max(1, grid.w // 2)
    return ~inside_box(grid, (grid.h - height) // 2, (grid.w - width) // 2, height, width)


def _beginning(grid: Grid) -> Tensor:
    """Two latent frames, of two only one."""
    return first_frames(grid, min(2, grid.t - 1))


COMPLETIONS: dict[str, tuple[Callable[[Grid], Tensor], Callable[[Pictures, Hidden], Pictures]]] = {
    "continuation": (_beginning, copy_last),
    "interpolation": (both_ends, blend),
    "inpainting": (_half, mean_colour),
}
"""What is given of each task, and how the rest is guessed."""


def _psnr(clips: Pictures, others: Pictures, hidden: Hidden) -> float:
    difference = (clips.astype(np.float64) - others)[:, hidden]
    error = float(np.square(difference).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf
