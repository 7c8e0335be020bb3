"""Everything that is said of a codec's reconstructions: per clip, in the mean, and of its codes. The same clips give
the same numbers again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tokvid.codes_file import bits_of
from tokvid.frames import to_model
from tokvid.metrics.flicker import flicker
from tokvid.metrics.frechet import MIN_FRAMES, efflite_frechet, is_still, motion_features
from tokvid.metrics.perceptual import PictureDistance, efflite_distance, video_distance
from tokvid.metrics.psnr_ssim import WINDOW, psnr, ssim
from tokvid_tokenizers.codec import VideoCodec
from tokvid_tokenizers.evaluation import Reconstructions, evaluate_reconstructions, reconstruct

Pictures = npt.NDArray[np.uint8]
_BATCH = 8
_CLIP_NUMBER = re.compile(r"#\d+$")


@dataclass(frozen=True, kw_only=True, eq=False)
class FullEvaluation:
    """``figures`` over all clips, ``each`` of every clip, in their order, by metric, and what they were measured on.

    A metric that cannot be had (SSIM of tiny pictures, a Fréchet distance of one clip) is not there, and ``left_out``
    says why.
    """

    figures: dict[str, float]
    each: dict[str, list[float]]
    left_out: dict[str, str]
    reconstructions: Reconstructions


def evaluate_codec(
    codec: VideoCodec,
    clips: Pictures,
    *,
    distances: dict[str, PictureDistance] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FullEvaluation:
    """Measure ``codec`` on uint8 clips ``[N,T,H,W,3]``.

    PSNR (dB) and SSIM per clip over uint8 RGB; flicker in levels of 255; ``efflite_distance`` and what ``distances``
    adds (LPIPS with the user's weights) as means over frames; ``efflite_frechet`` of all originals and
    reconstructions; the use of the codebook, and bits a pixel as a ``.tokvid`` file holds them, head apart.
    """
    distances = {"efflite_distance": efflite_distance, **(distances or {})}
    done = reconstruct(codec, clips, batch_size=_BATCH)
    left_out = _left_out(clips)
    each: dict[str, list[float]] = {
        name: [] for name in ("psnr", "ssim", "flicker", *distances) if name not in left_out
    }
    features: tuple[list[npt.NDArray[np.float64]], list[npt.NDArray[np.float64]]] = ([], [])
    device = next(codec.parameters()).device
    for first in range(0, len(clips), _BATCH):
        pair = clips[first : first + _BATCH], done.pictures[first : first + _BATCH]
        for original, decoded in zip(*pair, strict=True):
            each["psnr"].append(psnr(original, decoded))
            each["flicker"].append(flicker(original, decoded))
            if "ssim" in each:
                each["ssim"].append(ssim(original, decoded))
        frames = [to_model(part).to(device) for part in pair]
        with torch.inference_mode():
            for name, distance in distances.items():
                each[name] += video_distance(distance, frames[1], frames[0]).tolist()
            if "efflite_frechet" not in left_out:
                for part, found in zip(frames, features, strict=True):
                    found.append(motion_features(part))
        if progress:
            progress(min(first + _BATCH, len(clips)), len(clips))
    figures: dict[str, float] = {name: float(np.mean(values)) for name, values in each.items()}
    if "efflite_frechet" not in left_out:
        reference, decoded_motion = (np.concatenate(found) for found in features)
        if is_still(reference):
            left_out["efflite_frechet"] = "it is of motion, and nothing moves in these clips"
        else:
            figures["efflite_frechet"] = efflite_frechet(reference, decoded_motion)
    summary = evaluate_reconstructions(codec, clips, done).figures()
    figures |= {name: value for name, value in summary.items() if name != "psnr"}
    if codec.num_codebooks:
        figures["bits_per_pixel"] = bits_of(codec.codebook_size) * done.codes[0].numel() / clips[0, ..., 0].size
    return FullEvaluation(figures=figures, each=each, left_out=left_out, reconstructions=done)


def worst(values: Sequence[float], count: int) -> list[int]:
    """The positions of the ``count`` lowest ``values``, the lowest first."""
    return [int(i) for i in np.argsort(values, kind="stable")[:count]]


def table(names: Sequence[str], evaluation: FullEvaluation) -> list[dict[str, Any]]:
    """A row a clip: its name and its figures."""
    return [
        {"name": name, **{metric: values[number] for metric, values in evaluation.each.items()}}
        for number, name in enumerate(names)
    ]


def by_video(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of :func:`table` with one a video in place of one a clip (``film.mp4#0003``): its clips, their means."""
    videos: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        videos.setdefault(_CLIP_NUMBER.sub("", row["name"]), []).append(row)
    return [
        {
            "name": name,
            "clips": len(clips),
            **{metric: float(np.mean([clip[metric] for clip in clips])) for metric in clips[0] if metric != "name"},
        }
        for name, clips in videos.items()
    ]


def _left_out(clips: Pictures) -> dict[str, str]:
    count, num_frames, height, width = clips.shape[:4]
    reasons = {}
    if min(height, width) < WINDOW:
        reasons["ssim"] = f"pictures of {height}x{width} are smaller than its window of {WINDOW}x{WINDOW}"
    if num_frames < MIN_FRAMES or count < 2:
        reasons["efflite_frechet"] = f"it needs two clips of {MIN_FRAMES} frames, got {count} of {num_frames}"
    return reasons
