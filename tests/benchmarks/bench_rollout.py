"""Videos of a thousand latent frames: memory and drift, ``make bench ARGS=tests/benchmarks/bench_rollout.py``.

The model is TOKVID_BENCH_LM (runs/sprites-modes/lm/lm). Each policy and mode (ROLLOUT_MODES, frame,maskgit) draws one
video of ROLLOUT_LATENT_FRAMES (1,000) latent frames from one caption, a chunk at a time; what is measured of each
fiftieth of it: resident memory, how far the pictures' mean colour and gradient energy are from the first frames', how
much moves, and whether the oracle still sees the sprite that the caption names. The curves are drawn into
runs/rollout/.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from tokvid.data.sprites.oracle import Oracle
from tokvid.data.sprites.world import SpriteWorldConfig
from tokvid.frames import to_pictures
from tokvid.report.page import Report
from tokvid.report.pictures import contact_sheet
from tokvid.report.plots import line_plot
from tokvid_lm import Rollout, TextSegment, VideoLM

LATENT_FRAMES = int(os.environ.get("ROLLOUT_LATENT_FRAMES", "1000"))
MODEL = os.environ.get("TOKVID_BENCH_LM", "runs/sprites-modes/lm/lm")
CAPTION = "an apple moves left over grass"
FOLDER = Path("runs/rollout")
WAYS = {
    f"{kind}, {mode}": (Rollout(kind=kind, overlap=2), mode)
    for kind in ("window", "reencode")
    for mode in os.environ.get("ROLLOUT_MODES", "frame,maskgit").split(",")
}
Pictures = npt.NDArray[np.uint8]


def resident_mib() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def pieces(lm: VideoLM, rollout: Rollout, mode: str, num_frames: int, part: int) -> Iterator[Pictures]:
    """The video ``part`` frames at a time, uint8 ``[part,H,W,3]``."""
    waiting: list[Pictures] = []
    for frames in lm.stream([TextSegment(CAPTION)], mode=mode, num_frames=num_frames, rollout=rollout, seed=1):
        waiting.append(to_pictures(frames)[0])
        if sum(map(len, waiting)) >= part:
            joined = np.concatenate(waiting)
            yield joined[:part]
            waiting = [joined[part:]]


def figures(pictures: Pictures) -> dict[str, float]:
    """Of a piece: brightness, gradient energy, and how much changes from frame to frame, all of pixels in [0, 255]."""
    values = pictures.astype(np.float32)
    across = [np.square(np.diff(values, axis=axis)).mean() for axis in (1, 2)]
    return {
        "brightness": float(values.mean()),
        "gradient": float(np.sqrt(sum(across))),
        "motion": float(np.abs(np.diff(values, axis=0)).mean()),
    }


def test_rollouts() -> None:
    torch.set_num_threads(2)
    lm = VideoLM.from_pretrained(MODEL, dtype=torch.float32)
    stride = lm.codec.temporal_stride
    num_frames = 1 + (LATENT_FRAMES - 1) * stride
    part = max(17, num_frames // 50)
    assert lm.settings.num_frames is not None and lm.settings.fps is not None
    size = (lm.settings.height or 0, lm.settings.width or 0)
    oracle = Oracle(SpriteWorldConfig(size=size, num_frames=lm.settings.num_frames, fps=lm.settings.fps))
    wanted = "apple"
    FOLDER.mkdir(parents=True, exist_ok=True)
    report = Report("Long videos", f"{LATENT_FRAMES} latent frames of {MODEL}: {CAPTION}")
    print(
        f"\n{'policy, mode':<20}{'frames':>8}{'RSS first':>11}{'RSS last':>10}{'slope MiB/1000':>16}{'sprite seen':>13}"
    )
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {
        name: {} for name in ("brightness", "gradient", "motion")
    }
    for name, (rollout, mode) in WAYS.items():
        memory, seen, sheet = [], [], []
        for number, pictures in enumerate(pieces(lm, rollout, mode, num_frames, part)):
            memory.append(resident_mib())
            for figure, value in figures(pictures).items():
                curves[figure].setdefault(name, []).append((number * part, value))
            clip = pictures[None, : lm.settings.num_frames]
            seen.append(any(sprite.sprite == wanted for sprite in oracle.look(clip)[0].sprites))
            if number % 10 == 0:
                sheet.append(pictures[: lm.settings.num_frames])
        settled = memory[2:]
        slope = float(np.polyfit(np.arange(len(settled)) * part, settled, 1)[0]) * 1000
        row = f"{name:<20}{len(memory) * part:>8}{memory[0]:>11.0f}{memory[-1]:>10.0f}{slope:>16.2f}"
        print(f"{row}{np.mean(seen):>13.2f}", flush=True)
        Image.fromarray(contact_sheet(sheet, [f"frame {10 * n * part}" for n in range(len(sheet))], scale=2)).save(
            FOLDER / (name.replace(", ", "-") + ".png")
        )
    report.section("Drift", "Every point is a fiftieth of the video; a flat line drifts nowhere.")
    for figure, lines in curves.items():
        report.plots(line_plot(lines, figure, xlabel="frame", ylabel=figure))
    report.save(FOLDER / "report.html")
