"""Chunked and sliced cross-entropy against plain ones: time, peak memory, and whether they are equal.

    make bench ARGS=tests/benchmarks/bench_cross_entropy.py

2,048 hidden states of 512 channels, a head of 85,000 columns, fp32, forward and backward, two threads; each way in a
process of its own, and by turns. The peak is what resident memory grew by, the gradients included. The sliced loss has
the 65,000 columns of codes compete; its plain twin computes all logits and puts the others at minus infinity.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from tests.peak_memory import PEAK_KIB

POSITIONS, TEXT, COLUMNS, HIDDEN = 2_048, 20_000, 85_000, 512
ROUNDS, THREADS = int(os.environ.get("TOKVID_BENCH_TURNS", "3")), 2

MEASURE = """
import json, time, torch
import torch.nn.functional as F
from torch import nn
from tokvid_lm.objectives.cross_entropy import head_cross_entropy
torch.set_num_threads({threads})
torch.manual_seed(0)
head = nn.Linear({hidden}, {columns}, bias=False)
hidden = torch.randn({positions}, {hidden}, requires_grad=True)
targets = torch.randint({text}, {columns}, ({positions},))
weights = torch.full(({positions},), 1 / {positions})
torch.zeros(1).requires_grad_().sum().backward()  # autograd's threads start
before = {peak}
start, busy = time.perf_counter(), time.process_time()
{loss}
loss.backward()
seconds, busy = time.perf_counter() - start, time.process_time() - busy
peak = {peak}
torch.save([loss.detach(), hidden.grad, head.weight.grad], {file!r})
print(json.dumps([seconds, busy, (peak - before) / 1024]))
"""
PAIRS = {
    "all columns": {
        "plain": "loss = F.cross_entropy(head(hidden), targets)",
        "tokvid, chunked": "loss, _ = head_cross_entropy(hidden, head, targets, weights)",
    },
    "65,000 of the columns": {
        "plain, others at -inf": (
            "other = torch.arange({columns}) < {text}\n"
            "loss = F.cross_entropy(head(hidden).masked_fill(other, -torch.inf), targets)"
        ),
        "tokvid, sliced": ("loss, _ = head_cross_entropy(hidden, head, targets, weights, columns=({text}, {columns}))"),
    },
}


def measure(loss: str, file: Path) -> list[float]:
    """Seconds, those of the processor (all threads), and MiB at the peak; loss and gradients are left in ``file``."""
    sizes = {"positions": POSITIONS, "text": TEXT, "columns": COLUMNS, "hidden": HIDDEN}
    code = MEASURE.format(loss=loss.format(**sizes), file=str(file), peak=PEAK_KIB, threads=THREADS, **sizes)
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    figures: list[float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def farthest(file: Path, other: Path) -> float:
    """The largest difference of loss and gradients, each against the largest number of its tensor."""
    pairs = zip(torch.load(file), torch.load(other), strict=True)
    return max(float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs)


def test_cross_entropy(tmp_path: Path) -> None:
    print(f"\n{POSITIONS:,} positions, {COLUMNS:,} columns of {HIDDEN}, medians of {ROUNDS} processes by turns\n")
    print("| columns | way | seconds | of the processor | peak MiB | of plain | largest relative difference |")
    print("|---|---|---|---|---|---|---|")
    for columns, ways in PAIRS.items():
        files = {way: tmp_path / f"{number}.pt" for number, way in enumerate(ways)}
        rounds = [{way: measure(loss, files[way]) for way, loss in ways.items()} for _ in range(ROUNDS)]
        medians = {way: [statistics.median(r[way][i] for r in rounds) for i in range(3)] for way in ways}
        plain = next(iter(ways))
        for way, (seconds, busy, peak) in medians.items():
            apart, share = farthest(files[way], files[plain]), peak / medians[plain][2]
            print(f"| {columns} | {way} | {seconds:.2f} | {busy:.2f} | {peak:,.0f} | {share:.2f} | {apart:.1e} |")
            assert apart < 1e-4
