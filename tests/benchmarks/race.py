"""One contender of the training race: train it for so long, or so many steps, and measure it on held-out clips.

    OMP_WAIT_POLICY=passive python tests/benchmarks/race.py "tokvid base" --minutes 15 --learning-rate 1e-3

Everybody has the same clips in the same order, the same loss (the mean squared error and what the quantizer adds),
bf16 autocast where the processor is faster in it, warm-up and linear decay, and the same clock: a minute of two cores
is 120 seconds of processor time, so that other work on the machine takes nothing from anyone. It prints one line of
JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import CONTENDERS
from PIL import Image
from torch import Tensor, nn

from tokvid.cli.clips import load_splits
from tokvid.data.clips import FolderDataConfig
from tokvid.frames import to_model, to_pictures
from tokvid.metrics.perceptual import efflite_distance, video_distance
from tokvid.metrics.psnr_ssim import psnr, ssim
from tokvid.optimizer import AdamWConfig, MuonConfig, build_optimizer, set_learning_rate
from tokvid.report.pictures import contact_sheet, side_by_side
from tokvid.runtime import computes_in_bf16

BATCH, CORES, WARMUP = 2, 2, 0.05


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--data", default="data/natural", help="what natural_clips.py made")
    parser.add_argument("--minutes", type=float, default=15.0, help="of two cores")
    parser.add_argument("--steps", type=int, help="so many steps instead, however long they take")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--pictures", type=Path, help="a PNG of held-out clips beside their reconstructions")
    arguments = parser.parse_args()
    torch.set_num_threads(CORES)
    data = FolderDataConfig(path=arguments.data, size=(128, 128), num_frames=17, fps=12, clips_per_video=8)
    clips, held_out = load_splits(data)
    torch.manual_seed(0)
    codec = CONTENDERS[arguments.contender]().train()
    facts = train(codec, clips.frames, arguments)
    facts |= measure(codec.eval(), held_out.frames, arguments.pictures)
    print(json.dumps({"contender": arguments.contender, **facts}))


def train(codec: nn.Module, clips: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole training; how many steps there were, and what they took."""
    if arguments.optimizer == "muon":
        config: Any = MuonConfig(learning_rate=arguments.learning_rate, adam_learning_rate=arguments.learning_rate / 7)
    else:
        config = AdamWConfig(learning_rate=arguments.learning_rate)
    optimizer = build_optimizer(config, codec, adam_names=("stem", "head", "quantizer"))
    bf16 = computes_in_bf16("auto")
    start, began, step, done = time.process_time(), time.perf_counter(), 0, 0.0
    if hasattr(codec, "calibrate"):
        codec.calibrate(batch(clips, 0))
    while done < 1:
        set_learning_rate(optimizer, min(done / WARMUP + 0.01, 1.0) if done < WARMUP else (1 - done) / (1 - WARMUP))
        frames = batch(clips, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            reconstruction, extra = codec(frames)
        loss = (reconstruction.float() - frames).square().mean()
        (loss + extra.float()).backward()
        norm = torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        assert torch.isfinite(norm), f"step {step}: the gradient is {norm}"
        # A discriminator that came along has no gradients.
        trained = sum(parameter.numel() for parameter in codec.parameters() if parameter.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        used = (time.process_time() - start) / (60 * CORES)
        done = step / arguments.steps if arguments.steps else used / arguments.minutes
        if step % 20 == 0:
            print(f"step {step}, {used:.1f} minutes, PSNR {10 * torch.log10(4 / loss.detach()):.2f}", flush=True)
    return {
        "parameters": trained,
        "bf16": bf16,
        "optimizer": arguments.optimizer,
        "learning_rate": arguments.learning_rate,
        "steps": step,
        "minutes_of_two_cores": used,
        "wall_minutes": (time.perf_counter() - began) / 60,
    }


def batch(clips: Any, step: int) -> Tensor:
    """Frames ``[B,3,T,H,W]`` of one step: each pass over the clips is a new order, the same for everybody."""
    a_pass = len(clips) // BATCH
    order = np.random.default_rng([0, step // a_pass]).permutation(len(clips))
    first = step % a_pass * BATCH
    return to_model(clips[np.sort(order[first : first + BATCH])])


@torch.inference_mode()
def measure(codec: nn.Module, held_out: Any, pictures: Path | None) -> dict[str, float]:
    """PSNR and SSIM, means over clips, and the perceptual distance, of reconstructions in fp32."""
    made, distances = [], []
    for clip in held_out:
        frames = to_model(clip[None])
        reconstruction = codec(frames)[0].clamp(-1, 1)
        distances.append(float(video_distance(efflite_distance, frames, reconstruction).mean()))
        made.append(to_pictures(reconstruction)[0])
    if pictures is not None:
        pairs = [side_by_side(clip, other) for clip, other in zip(held_out[::9], made[::9], strict=True)]
        Image.fromarray(contact_sheet(pairs)).save(pictures)
    pairs_of = list(zip(held_out, made, strict=True))
    return {
        "psnr": float(np.mean([psnr(clip, other) for clip, other in pairs_of])),
        "ssim": float(np.mean([ssim(clip, other) for clip, other in pairs_of])),
        "efflite_distance": float(np.mean(distances)),
    }


if __name__ == "__main__":
    main()
