"""Is a sample the same alone and among others? ``make bench ARGS=tests/benchmarks/bench_batches.py``.

200 clips are drawn in fp32 from 200 captions in every mode that the model at TOKVID_BENCH_LM (runs/sprites-modes/lm/lm)
knows, or in those that BATCH_MODES names, at batch 1 and at batch 8. The noise is the same bit for bit; sums of floats
in another order may tip a choice, and every later code with it. Also counted: of 1,000 clips drawn at temperature 2,
those whose ids are all codes.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from tokvid.data.sprites.world import SpriteWorld, SpriteWorldConfig
from tokvid_lm import TextSegment, VideoLM, VideoSegment

MODEL = os.environ.get("TOKVID_BENCH_LM", "runs/sprites-modes/lm/lm")
SAMPLES, HOT = (int(os.environ.get(name, count)) for name, count in (("SAMPLES", "200"), ("HOT", "1000")))


def draw(lm: VideoLM, captions: list[str], mode: str, batch_size: int, temperature: float | None = None) -> Tensor:
    """Codes ``[N,K,t,h,w]``."""
    prompts = [[TextSegment(caption)] for caption in captions]
    clips = lm.generate(prompts, mode=mode, candidates=1, batch_size=batch_size, temperature=temperature, seed=3)
    return torch.cat([clip.codes for clip in clips if isinstance(clip, VideoSegment) and clip.codes is not None])


def test_batches() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    lm = VideoLM.from_pretrained(MODEL, dtype=torch.float32)
    world = SpriteWorld(SpriteWorldConfig())
    captions = [world.caption(number, split="held_out") for number in range(max(SAMPLES, HOT))]
    print(
        f"\n| mode | of {SAMPLES} the same at batch 1 and 8 | whole videos of {HOT} at temperature 2 |\n|---|---|---|"
    )
    known = [sampling.mode for sampling in lm.settings.sampling]
    for mode in os.environ["BATCH_MODES"].split(",") if "BATCH_MODES" in os.environ else known:
        alone, among = (draw(lm, captions[:SAMPLES], mode, size) for size in (1, 8))
        same = int((alone == among).flatten(1).all(1).sum())
        hot = draw(lm, captions[:HOT], mode, 64, temperature=2.0)
        whole = int(((hot >= 0) & (hot < lm.codec.codebook_size)).flatten(1).all(1).sum())
        print(f"| {mode} | {same} ({same / SAMPLES:.1%}) | {whole} |", flush=True)
