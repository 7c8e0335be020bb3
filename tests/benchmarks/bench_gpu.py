"""What a GPU makes of it; refuses without one. ``python -m pytest -s -o python_files='bench_*.py' THIS FILE``.

Attention: a model of 12 layers of 768 in bf16, 8 rows of 2,048 ids, plain causal documents or videos that see their own
frames, forward and backward; flash-attention, where it is installed, forward. Generation: the model at TOKVID_BENCH_LM
(else the one of ``lm/sprites-gpu`` with random weights), one caption, guidance 2.5. Medians, each way timed between two
synchronisations.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.benchmarks.bench_attention import packed
from tests.benchmarks.bench_generation import build, ours
from tokvid.runtime import prepare
from tokvid_lm.mask_spec import MaskSpec, mask_for
from tokvid_lm.vocabulary import MODES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="measures a CUDA device")
ROWS, LENGTH = 8, 2048
TURNS = int(os.environ.get("TOKVID_BENCH_TURNS", "7"))
BATCHES = [int(batch) for batch in os.environ.get("TOKVID_BENCH_BATCHES", "1,16,256").split(",")]


def median(way: Callable[[], object]) -> float:
    """Seconds of one call, after one for warming up."""
    found = []
    for turn in range(TURNS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        way()
        torch.cuda.synchronize()
        if turn:
            found.append(time.perf_counter() - start)
    return statistics.median(found)


def rows_of(kind: str) -> MaskSpec:
    one = packed(LENGTH, kind)
    names = ("document", "order", "block", "ghost")
    return MaskSpec(**{name: getattr(one, name).expand(ROWS, -1).contiguous().cuda() for name in names})


def hidden_states(model: LlamaForCausalLM, ids: torch.Tensor, spec: MaskSpec) -> torch.Tensor:
    with torch.autocast("cuda", torch.bfloat16):
        arguments = mask_for(model, spec, spec.order)
        hidden: torch.Tensor = model.model(input_ids=ids, use_cache=False, **arguments).last_hidden_state
    return hidden


def forward_and_backward(model: LlamaForCausalLM, forward: Callable[[], torch.Tensor]) -> None:
    forward().float().square().mean().backward()
    model.zero_grad()


def test_generation_on_a_gpu() -> None:
    lm = build().to("cuda")
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, guided, milliseconds a clip")
    print("| mode | weights | " + " | ".join(f"batch {batch}" for batch in BATCHES) + " |")
    print("|---|---|" + "---|" * len(BATCHES))
    for dtype in (torch.float32, torch.bfloat16):
        lm.model.to(dtype)
        for mode in MODES:
            found = [1000 * median(partial(ours, lm, mode, batch)) / batch for batch in BATCHES]
            cells = " | ".join(f"{ms:,.1f}" for ms in found)
            print(f"| {mode} | {str(dtype).removeprefix('torch.')} | {cells} |", flush=True)


def test_attention_on_a_gpu() -> None:
    prepare(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12
    )
    model = LlamaForCausalLM(config).cuda()
    ids = torch.randint(4096, (ROWS, LENGTH), device="cuda")
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, [{ROWS},{LENGTH}]")
    print("| documents | attention | forward, ids/s | forward and backward, ids/s | memory, GiB |")
    print("|---|---|---|---|---|")
    every = ("sdpa", "flex_attention", "flash_attention_2")
    for kind, ways in (("text", every), ("frames", every[:2])):
        spec = rows_of(kind)
        for way in ways:
            if way.startswith("flash") and find_spec("flash_attn") is None:
                print(f"| {kind} | {way} | not installed | | |")
                continue
            model.set_attn_implementation(way)
            forward = partial(hidden_states, model, ids, spec)
            with torch.no_grad():
                there = ROWS * LENGTH / median(forward)
            torch.cuda.reset_peak_memory_stats()
            back = ROWS * LENGTH / median(partial(forward_and_backward, model, forward))
            memory = torch.cuda.max_memory_allocated() / 2**30
            print(f"| {kind} | {way} | {there:,.0f} | {back:,.0f} | {memory:.1f} |", flush=True)
