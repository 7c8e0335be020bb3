"""How long one clip takes in each mode, and beside transformers' own generation with guidance.

    make bench ARGS=tests/benchmarks/bench_generation.py

The model is that of TOKVID_BENCH_LM, else the one of the recipe ``lm/sprites-modes`` with random weights: 17 frames of
32x32 pixels are 5x8x8 codes. All modes draw with guidance 2.5, the unconditional rows in the same batch: MaskGIT in 12
steps, frame by frame in 8 and then 4. fp32, two threads; the ways take turns TOKVID_BENCH_TURNS (5) times, the tables
have the medians. Decoding the codes is alike for all and not counted.

Besides seconds the tables have those of the processor, summed over its threads: of them other work on the machine takes
nothing. Work that runs on both cores costs two of them a second, so they are hard on the modes with large passes.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LogitsProcessorList

from tokvid.config import from_mapping
from tokvid.grid import Grid
from tokvid.recipe import load_recipe
from tokvid_lm import TextSegment, VideoLM
from tokvid_lm.building import build_lm
from tokvid_lm.generation import draw_codes, split_request
from tokvid_lm.grammar import Grammar, GrammarLogitsProcessor
from tokvid_lm.samplers.runner import Way
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.templates import VideoHeader
from tokvid_lm.training_config import LMRecipe
from tokvid_lm.vocabulary import MODES
from tokvid_tokenizers.codec import VideoCodec
from tokvid_tokenizers.codec_config import codec_config

THREADS = 2
TURNS = int(os.environ.get("TOKVID_BENCH_TURNS", "5"))
BATCHES = [int(batch) for batch in os.environ.get("TOKVID_BENCH_BATCHES", "1,16").split(",")]
CAPTION = "an apple moves left over grass"
GRID, FRAMES = Grid(t=5, h=8, w=8), 17
GUIDANCE = 2.5
SETTINGS = {
    "next_token": Sampling(mode="next_token", guidance_scale=GUIDANCE),
    "maskgit": Sampling(mode="maskgit", guidance_scale=GUIDANCE, steps=12),
    "frame": Sampling(mode="frame", guidance_scale=GUIDANCE, steps=4, first_steps=8),
}
Ways = dict[str, Callable[[], object]]


def build(template: Literal["bare"] | None = None) -> VideoLM:
    """The model to measure; with a ``template`` one with random weights that writes its videos so."""
    saved = os.environ.get("TOKVID_BENCH_LM")
    if saved and template is None:
        return VideoLM.from_pretrained(saved)
    recipe = from_mapping(LMRecipe, load_recipe("lm/sprites-modes"))
    codec = VideoCodec(codec_config(load_recipe("codec/sprites-tiny")["codec"]))
    lm = build_lm(replace(recipe, template=template or recipe.template), codec, [CAPTION] * 3)
    lm.model.eval()
    return lm


def ours(lm: VideoLM, mode: str, batch: int, *, compiled: bool = False) -> Tensor:
    """``batch`` clips of one caption."""
    requests = [split_request([TextSegment(CAPTION)], lm)]
    options: dict[str, Any] = {"fps": None, "copies": batch, "batch_size": batch, "progress": None}
    return draw_codes(lm, requests, SETTINGS[mode], GRID, FRAMES, way=Way(compiled=compiled), **options)


def theirs(lm: VideoLM, batch: int, *, constrained: bool) -> Tensor:
    """Whole videos by ``model.generate`` and its guidance, which runs the unconditional rows by themselves.

    ``constrained`` by our logits processor, without which hardly a video would be one.
    """
    header = VideoHeader(grid=GRID)
    start = lm.template.header(header)
    prompt, null = (
        torch.tensor([[*lm.document(segments).ids.tolist(), *start]]).repeat(batch, 1)
        for segments in ([TextSegment(CAPTION)], [])
    )
    grammar = Grammar.video(lm.vocabulary, lm.template, lm.layout, header)
    processor = GrammarLogitsProcessor(grammar, prompt.shape[1], first_step=len(start))
    lm.model.generation_config.eos_token_id = None
    drawn = lm.model.generate(  # type: ignore[operator,unused-ignore]
        prompt,
        attention_mask=torch.ones_like(prompt),
        guidance_scale=GUIDANCE,
        negative_prompt_ids=null,
        do_sample=True,
        top_k=0,
        max_new_tokens=lm.template.length(header) - len(start) - 1,  # as ours: without the end
        logits_processor=LogitsProcessorList([processor] if constrained else []),
        pad_token_id=lm.pad_id,
    )
    assert isinstance(drawn, Tensor)
    return drawn


@dataclass(frozen=True)
class Cost:
    """Medians of seconds and of those of the processor."""

    seconds: float
    processor: float


def race(ways: Ways) -> dict[str, Cost]:
    """What each way costs; they take turns, after one round that is not counted where there are several."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(TURNS + (TURNS > 1)):
        for name, way in ways.items():
            start, busy = time.perf_counter(), time.process_time()
            way()
            if turn or TURNS == 1:
                found[name].append((time.perf_counter() - start, time.process_time() - busy))
    return {
        name: Cost(*(statistics.median(column) for column in zip(*times, strict=True))) for name, times in found.items()
    }


@contextmanager
def counted(lm: VideoLM) -> Iterator[list[int]]:
    """The ids of each forward pass of the model, row by row, while it is open."""
    passes: list[int] = []
    body = lm.model.base_model
    handle = body.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append((args[0] if args else kwargs["input_ids"]).numel()), with_kwargs=True
    )
    try:
        yield passes
    finally:
        handle.remove()


def work(lm: VideoLM, way: Callable[[], object]) -> tuple[int, float]:
    """Passes and matrix arithmetic (GFLOP) of one way."""
    with counted(lm) as passes, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        way()
    return len(passes), counter.get_total_flops() / 1e9


def modes_table(lm: VideoLM) -> None:
    """Print the cost of each mode, as it is and with compiled steps (which were compiled before)."""
    print("\n| batch | mode | passes (and prefill, commits) | s | compiled, s | times faster | GFLOP |")
    print("|---|---|---|---|---|---|---|")
    for batch in BATCHES:
        ways: Ways = {}
        for mode in MODES:
            for compiled in (False, True):
                ways[mode + ", compiled" * compiled] = partial(ours, lm, mode, batch, compiled=compiled)
        for way in ways.values():
            way()
        costs = race(ways)
        first = costs["next_token"], costs["next_token, compiled"]
        for mode in MODES:
            passes, flops = work(lm, ways[mode])
            more = 1 + (GRID.t - 1 if mode == "frame" else 0)
            cost = costs[mode], costs[mode + ", compiled"]
            times = ", ".join(f"{a.seconds / b.seconds:.2f}" for a, b in zip(first, cost, strict=True))
            print(
                f"| {batch} | {mode} | {passes - more} (+{more}) | {cost[0].seconds:.2f} | {cost[1].seconds:.2f} |"
                f" {times} | {flops:.1f} |",
                flush=True,
            )
            assert passes - more == {"next_token": GRID.cells, "maskgit": 12, "frame": 8 + 4 * (GRID.t - 1)}[mode]
    print(
        "\nOn a GPU a pass of so small a model takes as long as its launch, whether it holds one id or a whole clip: at"
        " batch 1 the clock follows the passes. Where batches fill it, it follows the GFLOP, as the processor does"
        " here.\n"
    )


def generate_table() -> None:
    """Print what transformers' generate takes for the same clips; videos with separators, and of codes alone."""
    print("| batch | template | way | s | s of the processor | codes/s | ours, and ours compiled, times faster |")
    print("|---|---|---|---|---|---|---|")
    for template in (None, "bare"):
        lm = build(template)
        for batch in BATCHES:
            ways: Ways = {
                "tokvid, next_token": lambda lm=lm, batch=batch: ours(lm, "next_token", batch),  # type: ignore[misc]
                "tokvid, compiled": lambda lm=lm, batch=batch: ours(lm, "next_token", batch, compiled=True),  # type: ignore[misc]
                "generate, nothing forbidden": lambda lm=lm, batch=batch: theirs(lm, batch, constrained=False),  # type: ignore[misc]
                "generate, our grammar": lambda lm=lm, batch=batch: theirs(lm, batch, constrained=True),  # type: ignore[misc]
            }
            ways["tokvid, compiled"]()
            costs = race(ways)
            mine = costs["tokvid, next_token"], costs["tokvid, compiled"]
            for name, cost in costs.items():
                times = ", ".join(f"{cost.seconds / own.seconds:.2f}" for own in mine)
                print(
                    f"| {batch} | {lm.template.kind} | {name} | {cost.seconds:.2f} | {cost.processor:.2f} |"
                    f" {batch * GRID.cells / cost.seconds:.0f} | {times} |",
                    flush=True,
                )


def test_generation() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        lm = build()
        print(f"\n{GRID.cells} codes a clip, {sum(p.numel() for p in lm.model.parameters()) / 1e6:.1f} M parameters")
        print(f"fp32, {THREADS} threads, medians of {TURNS} by turns; times faster: as it is, compiled")
        modes_table(lm)
        generate_table()
    finally:
        torch.set_num_threads(threads)
