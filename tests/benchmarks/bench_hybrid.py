"""What a diffusion head puts back: ``make bench ARGS=tests/benchmarks/bench_hybrid.py``.

At the same codes, those of HYBRID_CLIPS (256) held-out clips, the model with a head at TOKVID_BENCH_LM
(runs/sprites-hybrid/lm/lm): the plain decode, the decode of latents that were not rounded (what a head aims at), the
head's samples, the mean of eight of them (a head that only blurs), and the plain decode with noise of the same size
(one that only adds noise). With TOKVID_BENCH_ADVERSARY=FOLDER also the decode of a codec of the same codes whose
decoder went on with an adversary. Frechet distances are to the originals. Pictures go to runs/hybrid/.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor

from tests.benchmarks.detail import BATCH, decoded_with_adversary, in_parts, print_table, save_sheet, with_noise
from tokvid.data.clips import SpriteDataConfig, materialise, open_clips
from tokvid.data.sprites.oracle import Oracle
from tokvid.data.sprites.world import SpriteWorldConfig
from tokvid.frames import to_model
from tokvid_lm import TextSegment, VideoLM
from tokvid_lm.hybrid import conditions, finished, head_of, refined_latents
from tokvid_lm.samplers.runner import sampling_from
from tokvid_lm.templates import VideoHeader

MODEL = os.environ.get("TOKVID_BENCH_LM", "runs/sprites-hybrid/lm/lm")
CLIPS = int(os.environ.get("HYBRID_CLIPS", "256"))
MODE = os.environ.get("HYBRID_MODE", "maskgit")
FOLDER = Path("runs/hybrid")


def test_hybrid() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    lm = VideoLM.from_pretrained(MODEL, dtype=torch.float32)
    head, codec = head_of(lm), lm.codec
    held = materialise(open_clips(SpriteDataConfig(size=(32, 32), num_frames=17, held_out_clips=CLIPS), "held_out"))
    originals = to_model(held.frames)
    with torch.inference_mode():
        codes = in_parts(codec.encode, originals)
        rows = {
            "plain decode": in_parts(codec.decode, codes),
            "latents that were not rounded": in_parts(
                lambda part: codec.decode_latents(codec.unrounded_latents(part)).clamp(-1, 1), originals
            ),
        }
    header = VideoHeader(grid=codec.grid_for(*held.frames.shape[1:4]), mode=MODE, fps=held.fps)  # type: ignore[arg-type]
    samples: list[list[Tensor]] = [[] for _ in range(8)]
    reading = drawing = 0.0
    for start in range(0, CLIPS, BATCH):
        part = range(start, min(start + BATCH, CLIPS))
        documents = [finished(lm, [TextSegment(held.captions[n])], codes[n], header) for n in part]
        started = time.process_time()
        with sampling_from(lm.model, None):
            given = conditions(lm, documents, codes[start : part.stop])
            reading += time.process_time() - started
            started = time.process_time()
            for number, kept in enumerate(samples):
                latents = refined_latents(
                    head, given, torch.arange(start, part.stop), seed=number, refinement=lm.refinement
                )
                kept.append(codec.decode_latents(latents).clamp(-1, 1))
            drawing += time.process_time() - started
    hybrid = [torch.cat(each) for each in samples]
    plain = rows["plain decode"]
    rows["hybrid: a sample"] = hybrid[0]
    rows["hybrid: the mean of 8"] = torch.stack(hybrid).mean(0)
    rows["plain decode and noise"] = with_noise(plain, float((hybrid[0] - plain).square().mean().sqrt()))
    rows |= decoded_with_adversary(originals, codes)
    oracle = Oracle(SpriteWorldConfig(size=(32, 32), num_frames=17, fps=held.fps))
    print(f"\n{CLIPS} clips, mode {MODE}, {sum(p.numel() for p in head.parameters()):,} parameters, {lm.refinement}")
    print(
        f"processor seconds a clip: {reading / CLIPS:.3f} to read its codes,"
        f" {drawing / CLIPS / len(samples):.3f} to draw and decode"
    )
    print_table(originals, rows, oracle, held.captions)
    save_sheet(FOLDER / "sheet.png", originals, plain, hybrid, held.captions)
