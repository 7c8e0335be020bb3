"""What is right in distribution about refined frames: the table that the benchmarks of heads share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tokvid.data.sprites.oracle import Oracle
from tokvid.data.sprites.verdicts import judge_clips
from tokvid.frames import to_pictures
from tokvid.metrics.frechet import efflite_frechet, motion_features
from tokvid.metrics.perceptual import efflite_distance, video_distance
from tokvid.report.pictures import contact_sheet
from tokvid_tokenizers import load_codec

BATCH = 32
SHOWN = 6
ADVERSARY = os.environ.get("TOKVID_BENCH_ADVERSARY")
"""The same codec whose decoder alone went on, with an adversary."""


def in_parts(what: Callable[[Tensor], Tensor], over: Tensor) -> Tensor:
    """``what`` of all rows, some at a time."""
    return torch.cat([what(part) for part in over.split(BATCH)])


def with_noise(frames: Tensor, size: float) -> Tensor:
    """Frames and noise of deviation ``size``: a head that only adds noise."""
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    return (frames + size * noise).clamp(-1, 1)


def sharpened(frames: Tensor) -> Tensor:
    """Frames ``[B,3,T,H,W]`` and once more what they differ by from the mean of 3x3 pixels: an unsharp mask."""
    blurred = F.avg_pool3d(F.pad(frames, (1, 1, 1, 1, 0, 0), mode="replicate"), (1, 3, 3), stride=1)
    return (2 * frames - blurred).clamp(-1, 1)


def decoded_with_adversary(originals: Tensor, codes: Tensor) -> dict[str, Tensor]:
    """The row of the codec ``TOKVID_BENCH_ADVERSARY``, if one is named, whose codes must be ``codes``."""
    if ADVERSARY is None:
        return {}
    codec = load_codec(ADVERSARY)
    with torch.inference_mode():
        assert torch.equal(in_parts(codec.encode, originals), codes), f"{ADVERSARY} has other codes"
        frames = in_parts(lambda part: codec.decode(part, originals.shape[2]), codes)
    return {"plain decode, learned with an adversary": frames}


def print_table(
    originals: Tensor, rows: Mapping[str, Tensor], oracle: Oracle | None = None, captions: Sequence[str] = ()
) -> None:
    """A line a row of frames ``[B,3,T,H,W]``, all at the same codes."""
    reference = motion_features(originals)
    print(
        "| | PSNR dB | `efflite_distance` | `efflite_frechet` | gradient energy | change in time | sprite | direction |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, frames in {"originals": originals, **rows}.items():
        error = float((frames - originals).square().mean())
        psnr = f"{10 * np.log10(4 / error):.2f}" if error else ""
        gradient = (_change(frames, -1) + _change(frames, -2)) / (_change(originals, -1) + _change(originals, -2))
        moved = _change(frames, 2) / _change(originals, 2)
        distance = float(video_distance(efflite_distance, originals, frames).mean())
        judged = " | "
        if oracle is not None:
            figures = judge_clips(oracle, captions, to_pictures(frames)).figures()
            judged = f"{figures['sprite']['share']:.3f} | {figures['direction']['share']:.3f}"
        print(
            f"| {name} | {psnr} | {distance:.3f} | {efflite_frechet(reference, motion_features(frames)):.1f}"
            f" | {gradient:.3f} | {moved:.3f} | {judged} |"
        )


def save_sheet(
    path: Path, originals: Tensor, plain: Tensor, samples: Sequence[Tensor], captions: Sequence[str]
) -> None:
    """Clips, their plain decodings, samples, and what the first sample put on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    strips, labels = [], []
    for n in range(min(SHOWN, len(originals))):
        shown = {"clip": originals, "plain": plain, **{f"refined {k}": each for k, each in enumerate(samples[:3])}}
        for name, frames in shown.items():
            strips.append(to_pictures(frames[n : n + 1])[0])
            labels.append(f"{name}: {captions[n]}")
        strips.append(to_pictures(((samples[0] - plain)[n : n + 1] * 4).clamp(-1, 1))[0])
        labels.append("4 times the difference of refined 0 and plain")
    Image.fromarray(np.asarray(contact_sheet(strips, labels))).save(path)
    print(f"pictures: {path}")


def _change(frames: Tensor, axis: int) -> float:
    """Mean square of the differences along an axis."""
    return float(frames.diff(dim=axis).square().mean())
