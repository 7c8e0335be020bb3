"""What a codec's refiner puts back: ``make bench ARGS=tests/benchmarks/bench_refine.py``.

At the same codes, those of REFINE_CLIPS (256) held-out clips, the codec with a refiner at TOKVID_BENCH_CODEC
(runs/sprites-refine/codec/codec): the plain decode, samples, the mean of REFINE_MEAN (4) of them (a refiner that only
blurs), refined without noise, the plain decode with noise of the size of what is refined (one that only adds noise),
and sharpened by a mask (one that knows nothing). With TOKVID_BENCH_ADVERSARY=FOLDER also the decode of a codec of the
same codes whose decoder went on with an adversary. Of sprites of 32x32, or with REFINE_VIDEOS=FOLDER of clips of 17
frames of 128x128 from a folder of videos, 12 a second, at most so many of those held out. Pictures go to runs/refine/.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.detail import (
    BATCH,
    decoded_with_adversary,
    in_parts,
    print_table,
    save_sheet,
    sharpened,
    with_noise,
)
from tokvid.data.clips import FolderDataConfig, SpriteDataConfig, materialise, open_clips
from tokvid.data.sprites.oracle import Oracle
from tokvid.data.sprites.world import SpriteWorldConfig
from tokvid.frames import to_model
from tokvid_tokenizers import load_codec
from tokvid_tokenizers.refiner import Refiner

CODEC = os.environ.get("TOKVID_BENCH_CODEC", "runs/sprites-refine/codec/codec")
CLIPS = int(os.environ.get("REFINE_CLIPS", "256"))
MEAN = int(os.environ.get("REFINE_MEAN", "4"))
VIDEOS = os.environ.get("REFINE_VIDEOS")
FOLDER = Path("runs/refine")


def test_refine() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    codec = load_codec(CODEC)
    refiner = Refiner.load(CODEC, codec)
    assert refiner.head is not None
    if VIDEOS is None:
        data = SpriteDataConfig(size=(32, 32), num_frames=17, held_out_clips=CLIPS)
        held = materialise(open_clips(data, "held_out"))
        oracle = Oracle(SpriteWorldConfig(size=(32, 32), num_frames=17, fps=held.fps))
    else:
        folder = FolderDataConfig(path=VIDEOS, size=(128, 128), num_frames=17, fps=12)
        held, oracle = materialise(open_clips(folder, "held_out")), None
        if len(held) > CLIPS:  # some of every video
            chosen = np.linspace(0, len(held) - 1, CLIPS).round().astype(int)
            held = replace(held, frames=held.frames[chosen], captions=[held.names[number] for number in chosen])
    originals = to_model(held.frames)
    count = len(originals)
    with torch.inference_mode():
        codes = in_parts(codec.encode, originals)
        plain = in_parts(lambda part: codec.decode(part, originals.shape[2]), codes)

        def refined(seed: int) -> Tensor:
            return torch.cat(
                [
                    refiner.refine(codes[at : at + BATCH], originals.shape[2], seed=seed, first_sample=at)
                    for at in range(0, count, BATCH)
                ]
            )

        started = time.process_time()
        samples = [refined(seed) for seed in range(MEAN)]
        seconds = (time.process_time() - started) / MEAN / count
        own = refiner.refinement
        refiner.refinement = replace(own, temperature=0.0)
        still = refined(0)
        refiner.refinement = own
    size = float((samples[0] - plain).square().mean().sqrt())
    parameters = sum(parameter.numel() for parameter in refiner.head.parameters())
    print(f"\n{count} clips, {parameters:,} parameters, {refiner.refinement}")
    print(f"processor seconds a clip to decode and refine it: {seconds:.3f}")
    print_table(
        originals,
        {
            "plain decode": plain,
            "refined: a sample": samples[0],
            f"refined: the mean of {MEAN}": torch.stack(samples).mean(0),
            "refined without noise": still,
            "plain decode and noise": with_noise(plain, size),
            "plain decode, sharpened": sharpened(plain),
            **decoded_with_adversary(originals, codes),
        },
        oracle,
        held.captions,
    )
    save_sheet(FOLDER / "sheet.png", originals, plain, samples, held.captions)
