"""What makes a training step shorter or smaller, and where: channels-last, bf16, torch.compile, blocks computed twice.

    make bench ARGS="tests/benchmarks/bench_speedups.py"

One step of two clips of 17x128x128, forward and backward, each way in processes of their own and by turns. The clock is
the processor time of all threads over their number, so that other work on the machine takes nothing from anyone.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

ROUNDS, STEPS, THREADS = 3, 3, 2
PRESETS = ("base", "quality", "transformer")
# What torch calls channels-last is made to mean rows, before anything of ours is imported.
WAYS = {
    "fp32, rows in memory": ("torch.channels_last = torch.contiguous_format", "", False),
    "fp32, channels last": ("", "", False),
    "fp32, compiled": ("", "compile_blocks(codec)", False),
    "bf16": ("", "", True),
    "bf16, compiled": ("", "compile_blocks(codec)", True),
    "bf16, blocks twice": ("", "recompute_blocks(codec)", True),
}
MEASURE = """
import json, resource, statistics, time, torch
{before}
from tokvid_tokenizers import load_codec
from tokvid_tokenizers.layers.stack import compile_blocks, recompute_blocks
torch.set_num_threads({threads})
torch.manual_seed(0)
codec = load_codec("preset:{preset}").train()
{after}
frames = torch.rand(2, 3, 17, 128, 128) * 2 - 1
def step():
    with torch.autocast("cpu", torch.bfloat16, enabled={bf16}):
        output = codec(frames)
    ((output.frames.float() - frames).square().mean() + output.quantizer.loss).backward()
    codec.zero_grad()
def clocked(call):
    start = time.process_time(); call(); return (time.process_time() - start) / {threads}
first, times = clocked(step), [clocked(step) for _ in range({steps})]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([first, statistics.median(times), peak]))
"""


def measure(preset: str, way: str) -> list[float]:
    """Seconds of the first step and of a later one, and the peak MiB of the process."""
    before, after, bf16 = WAYS[way]
    code = MEASURE.format(before=before, after=after, bf16=bf16, preset=preset, threads=THREADS, steps=STEPS)
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    figures: list[float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def test_speedups() -> None:
    print(f"\n{'preset':<13}{'':<22}{'first step s':>13}{'step s':>8}{'of plain':>10}{'peak MiB':>10}")
    for preset in PRESETS:
        rounds = [{way: measure(preset, way) for way in WAYS} for _ in range(ROUNDS)]
        medians = {
            way: [statistics.median(figures) for figures in zip(*(r[way] for r in rounds), strict=True)] for way in WAYS
        }
        plain = medians["fp32, channels last"][1]
        for way, (first, step, peak) in medians.items():
            print(f"{preset:<13}{way:<22}{first:>13.1f}{step:>8.2f}{step / plain:>10.2f}{peak:>10.0f}", flush=True)
            assert step > 0
