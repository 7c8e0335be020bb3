"""Our attention for a processor against torch's, forward and backward, plain causal and on packed documents.

One row of 8 heads of 64 channels in fp32 on two threads, as transformers lays it out; the ways take turns, so that a
busy machine slows all of them. Nothing is asserted about speed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tokvid_lm.block_attention import block_attention, compile_mask
from tokvid_lm.mask_spec import MaskSpec, Run

HEADS, SIZE, THREADS, TURNS = 8, 64, 2, 9
LENGTHS = (512, 1024, 2048)


def packed(length: int, kind: str) -> MaskSpec:
    """One full row of documents of 100 to 400 tokens: plain text, or a video of 64-token frames after a caption."""
    draw, runs, left = random.Random(length), list[Run](), length
    while left:
        size = min(left, draw.randint(100, 400))
        size = left if left - size < 100 else size
        frames = (size - 1) // 64
        if kind == "text":
            runs.append(Run(length=size, begins=True))
        elif frames:
            runs.append(Run(length=size - 64 * frames, begins=True))
            runs.append(Run(length=64 * frames, kind="block", frames=frames))
        left -= size
    return MaskSpec.of_runs([runs])


def measure(ways: dict[str, Callable[[], Tensor]], grad: Tensor) -> dict[str, float]:
    """The milliseconds of a forward and backward pass of each way: the least, which a busy machine moves least."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way().backward(grad)
            if turn:  # the first is for warming up
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: min(found) for name, found in times.items()}


def test_attention() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        print(f"\n[1,{HEADS},S,{SIZE}] fp32, {THREADS} threads, forward and backward, least of {TURNS}, milliseconds")
        print(
            f"{'S':>5} {'documents':<22}{'sdpa causal':>12}{'ours causal':>12}{'sdpa masked':>12}{'ours masked':>12}",
            end="",
        )
        print(f"{'compiling':>11}")
        for length in LENGTHS:
            for kind in ("text", "frames"):
                row(length, kind)
    finally:
        torch.set_num_threads(threads)


def row(length: int, kind: str) -> None:
    """Measure one length and kind of documents, and print it."""
    spec = packed(length, kind)
    torch.manual_seed(0)
    tensors = [torch.randn(1, length, HEADS, SIZE).transpose(1, 2).requires_grad_() for _ in range(3)]
    queries, keys, values = tensors
    grad = torch.randn(1, length, HEADS, SIZE).transpose(1, 2)
    scale = SIZE**-0.5
    start = time.perf_counter()
    mask = compile_mask(spec)
    compiling = 1000 * (time.perf_counter() - start)
    dense = spec.to_bool()
    found = measure(
        {
            "sdpa causal": lambda: F.scaled_dot_product_attention(queries, keys, values, is_causal=True),
            "ours causal": lambda: block_attention(queries, keys, values, scale),
            "sdpa masked": lambda: F.scaled_dot_product_attention(queries, keys, values, attn_mask=dense),
            "ours masked": lambda: block_attention(queries, keys, values, scale, mask),
        },
        grad,
    )
    theirs = F.scaled_dot_product_attention(queries, keys, values, attn_mask=dense)
    torch.testing.assert_close(block_attention(queries, keys, values, scale, mask), theirs, rtol=1e-4, atol=1e-5)
    count = int(spec.document.max()) + 1
    print(
        f"{length:>5} {f'{count}, {kind}':<22}"
        + "".join(f"{ms:>12.1f}" for ms in found.values())
        + f"{compiling:>11.1f}"
    )
