"""Useful ids a second of packed rows, of randomly padded batches, and of batches grouped by length.

    make bench ARGS=tests/benchmarks/bench_packing.py

Equal shares of text (one to eight captions) and of captioned clips of 1, 5, 9 and 17 frames of 32x32 pixels, by
next-token; the model is that of the recipe ``lm/sprites-modes`` with random weights, in fp32 and two threads, once with
the attention that training from scratch has and once with torch's. A step is collating, forward and backward. Every way
sees the same documents, in batches of about as many ids; the ways take turns, the table has medians. Of the processor's
seconds, summed over threads, other work on the machine takes nothing.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers.trainer_pt_utils import LengthGroupedSampler

from tokvid.config import from_mapping
from tokvid.grid import Grid
from tokvid.recipe import load_recipe
from tokvid_lm import VideoLM, block_attention
from tokvid_lm.batch_plan import BatchPlan, Stage
from tokvid_lm.building import build_lm
from tokvid_lm.collate import collate
from tokvid_lm.document import Document, DocumentWriter
from tokvid_lm.fused_norm import fused_norms
from tokvid_lm.objectives.video_objective import VideoObjective
from tokvid_lm.templates import VideoHeader
from tokvid_lm.training_config import LMRecipe
from tokvid_tokenizers.codec import VideoCodec
from tokvid_tokenizers.codec_config import codec_config

THREADS = 2
TURNS = int(os.environ.get("TOKVID_BENCH_TURNS", "3"))
STEPS = int(os.environ.get("TOKVID_BENCH_STEPS", "16"))
ROWS, PACK = 16, 1024
LATENT_FRAMES = (0, 1, 2, 3, 5)  # of text, and of 1, 5, 9 and 17 frames
CAPTIONS = (
    "an apple moves left over grass",
    "the little unicorn slides to the right over sand",
    "a fox and a cat at night",
    "snow, and a rocket that falls",
)
Batch = list[list[int]]
"""The numbers of the documents of each row."""


def build() -> VideoLM:
    """The recipe's model; what it begins with as nothing gets weights too, so that every id matters to every loss."""
    recipe = from_mapping(LMRecipe, load_recipe("lm/sprites-modes"))
    lm = build_lm(recipe, VideoCodec(codec_config(load_recipe("codec/sprites-tiny")["codec"])), CAPTIONS)
    for name, weight in lm.model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.normal_(weight, std=0.02)
    return lm


def write(lm: VideoLM, number: int, generator: torch.Generator) -> Document:
    """Document ``number``; the kinds take turns."""
    frames = LATENT_FRAMES[number % len(LATENT_FRAMES)]
    count = 1 if frames else int(torch.randint(1, 9, (), generator=generator))
    captions = [CAPTIONS[int(torch.randint(len(CAPTIONS), (), generator=generator))] for _ in range(count)]
    writer = DocumentWriter(lm.template, lm.layout)
    writer.text(lm.processor.start_ids(), scored=False)
    writer.text(lm.processor.encode_text(". ".join(captions)), scored=not frames)
    if frames:
        grid = Grid(t=frames, h=8, w=8)
        codes = torch.randint(lm.codec.codebook_size, (1, 1, frames, 8, 8), generator=generator)
        asked = torch.ones(grid.cells, dtype=torch.bool).numpy()
        writer.video(lm.processor.code_ids(codes)[0].numpy(), VideoHeader(grid=grid), asked=asked)
    writer.text(lm.processor.end_ids(), scored=True)
    return writer.finish()


def padded(order: Sequence[int]) -> Iterator[Batch]:
    """One document a row, in this order."""
    for start in range(0, len(order), ROWS):
        yield [[number] for number in order[start : start + ROWS]]


def packed(lengths: Sequence[int]) -> list[Batch]:
    """Whole documents side by side, as a run plans them, in as many rows as hold the ids of ROWS documents."""
    rows = round(ROWS * sum(lengths) / len(lengths) / PACK)
    plan = BatchPlan([Stage(batches=STEPS, rows=rows)], pack=PACK, length=lambda sample, _: lengths[sample], seed=0)
    return [[list(row) for row in plan[number].rows] for number in range(STEPS)]


def step(lm: VideoLM, objective: VideoObjective, documents: Sequence[Document], batch: Batch) -> dict[str, Tensor]:
    """Forward and backward of a batch; what the objective says of it."""
    rows = [[documents[number] for number in row] for row in batch]
    parts = objective(**collate(rows, pad_id=lm.pad_id, positions=lm.positions), num_items=1)
    parts["loss"].backward()
    return parts


def run(lm: VideoLM, documents: Sequence[Document], batches: Sequence[Batch]) -> tuple[float, float, float]:
    """Seconds, those of the processor, and the mean loss of all labels."""
    objective = VideoObjective(lm.model, lm.vocabulary)
    loss, labels = 0.0, 0.0
    start, busy = time.perf_counter(), time.process_time()
    for batch in batches:
        parts = step(lm, objective, documents, batch)
        loss, labels = loss + float(parts["loss"]), labels + float(parts["count"].sum())
    lm.model.zero_grad()
    return time.perf_counter() - start, time.process_time() - busy, loss / labels


def test_packing() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    lm, generator = build(), torch.Generator().manual_seed(0)
    documents = [write(lm, number, generator) for number in range(2 * ROWS * STEPS)]
    rows = packed([len(document) for document in documents])
    used = torch.tensor([number for batch in rows for row in batch for number in row])
    order = used[torch.randperm(len(used), generator=generator)].tolist()
    lengths = [len(documents[number]) for number in order]
    grouped = [order[place] for place in LengthGroupedSampler(ROWS, lengths=lengths, generator=generator)]
    ways = {"randomly padded": list(padded(order)), "group_by_length": list(padded(grouped)), "packed": rows}
    print(f"\n{len(order)} documents, {sum(lengths) / len(order):.0f} ids in the mean; rows of {PACK} ids where packed")
    print(f"medians of {TURNS} by turns\n")
    print("| attention | way | steps | places filled | ids/s | times random | by the processor | loss |")
    print("|---|---|---|---|---|---|---|---|")
    try:
        for attention in (block_attention.register(), "sdpa"):
            lm.model.set_attn_implementation(attention)
            with fused_norms(lm.model):
                table(lm, documents, ways, attention)
    finally:
        torch.set_num_threads(threads)


def table(lm: VideoLM, documents: Sequence[Document], ways: dict[str, list[Batch]], attention: str) -> None:
    """Measure and print the ways with one kind of attention."""
    run(lm, documents, ways["packed"][:1])
    turns = [{way: run(lm, documents, batches) for way, batches in ways.items()} for _ in range(TURNS)]
    found = {way: [statistics.median(turn[way][figure] for turn in turns) for figure in range(3)] for way in ways}
    first = found["randomly padded"]
    for way, (seconds, busy, loss) in found.items():
        rows = [[sum(len(documents[number]) for number in row) for row in batch] for batch in ways[way]]
        ids, places = sum(map(sum, rows)), sum(len(row) * max(row) for row in rows)
        print(
            f"| {attention} | {way} | {len(rows)} | {100 * ids / places:.0f} % | {ids / seconds:.0f} |"
            f" {first[0] / seconds:.2f} | {first[1] / busy:.2f} | {loss:.6f} |",
            flush=True,
        )
        assert abs(loss - first[2]) < 1e-5 * first[2]
