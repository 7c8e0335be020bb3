"""Time and memory of the quantizers against vector-quantize-pytorch, forward and backward on 10,240 latents.

Each runs in a process of its own, so that its peak memory is its own. Nothing is asserted about speed.
"""

from __future__ import annotations

import json
import subprocess
import sys

from tests.peak_memory import PEAK_KIB

VECTORS = 10_240
RUNS = 5

# The peak is of the resident memory above what the process held before the quantizer was built.
MEASURE = """
import json, statistics, sys, time
import torch
{setup}
latents = torch.randn(8, {dim}, 5, 16, 16)
assert latents[:, 0].numel() == {vectors}
torch.zeros(1).requires_grad_().sum().backward()  # autograd's threads start
before = {peak}
times = []
for _ in range({runs}):
    latents.requires_grad_()
    start = time.perf_counter()
    {step}
    times.append(time.perf_counter() - start)
    latents = latents.detach()
peak = {peak}
print(json.dumps([statistics.median(times), (peak - before) / 1024]))
"""
OURS = "from tokvid_tokenizers.quantizers import build_quantizer\nquantizer = build_quantizer({config!r}).train()"
OUR_STEP = "output = quantizer(latents); (output.quantized.square().mean() + output.loss).backward()"
THEIR_STEP = "output = quantizer(latents); (output[0].square().mean() + output[2].sum()).backward()"
CASES: dict[str, list[tuple[str, int, str, str]]] = {
    "VQ, 8192 rows of 256": [
        (
            "tokvid",
            256,
            OURS.format(config={"kind": "vq", "codebook_size": 8192, "dim": 256, "kmeans_iterations": 0}),
            OUR_STEP,
        ),
        (
            "vector-quantize-pytorch",
            256,
            "from vector_quantize_pytorch import VectorQuantize\n"
            "quantizer = VectorQuantize(dim=256, codebook_size=8192, threshold_ema_dead_code=2).train()",
            "output = quantizer(latents.movedim(1, -1).flatten(1, 3));"
            " (output[0].square().mean() + output[2].sum()).backward()",
        ),
    ],
    "LFQ, 2^18 codes, full entropy": [
        ("tokvid", 18, OURS.format(config={"kind": "lfq", "codebook_size": 2**18}), OUR_STEP),
        (
            "vector-quantize-pytorch (5 % of the latents)",
            18,
            "from vector_quantize_pytorch import LFQ\n"
            "quantizer = LFQ(codebook_size=2**18, frac_per_sample_entropy=0.05).train()",
            THEIR_STEP,
        ),
    ],
    "SimVQ, 8192 rows of 256": [
        ("tokvid", 256, OURS.format(config={"kind": "simvq", "codebook_size": 8192, "dim": 256}), OUR_STEP),
        (
            "vector-quantize-pytorch",
            256,
            "from vector_quantize_pytorch import SimVQ\n"
            "quantizer = SimVQ(dim=256, codebook_size=8192, channel_first=True).train()",
            THEIR_STEP,
        ),
    ],
    "FSQ, 64000 codes": [
        ("tokvid (its FSQ is vector-quantize-pytorch's)", 6, OURS.format(config={"kind": "fsq"}), OUR_STEP),
    ],
}


def measure(dim: int, setup: str, step: str) -> tuple[float, float]:
    """Seconds a step (the median) and MB at the peak."""
    code = MEASURE.format(setup=setup, dim=dim, step=step, runs=RUNS, vectors=VECTORS, peak=PEAK_KIB)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    return seconds, megabytes


def test_quantizers() -> None:
    print(f"\n{VECTORS} latents, forward and backward, fp32, median of {RUNS} runs, each in its own process")
    print(f"{'quantizer':<32}{'whose':<48}{'seconds':>9}{'peak MB':>9}")
    for name, rows in CASES.items():
        for whose, dim, setup, step in rows:
            seconds, megabytes = measure(dim, setup, step)
            print(f"{name:<32}{whose:<48}{seconds:>9.3f}{megabytes:>9.0f}")
            assert seconds > 0
