"""What a language model recipe takes before anything is bought: ids, arithmetic, memory a GPU, hours, cost.

tokvid plan lm/sprites-gpu
tokvid plan my-7b.yaml --gpus 64 --gpu h100 --price 2.5
tokvid plan my-7b.yaml --gpus 64 --training.checkpoint_layers=true --json

It reads the recipe, the codec's folder and, of a pretrained model, configuration and text tokenizer, no weights. The
hours are the arithmetic of all steps at --utilisation of the GPUs' stated peak; of attention all of each row counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from tokvid.errors import ConfigError
from tokvid.recipe import load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``RECIPE [--gpus N] [--gpu KIND] [--utilisation X] [--price X] [--caption-ids N] [--json] [--a.b=value ...]``."""
    parser.add_argument("recipe", metavar="RECIPE", help="a file, or a name of 'tokvid recipes list'")
    parser.add_argument("--gpus", metavar="N", type=int, default=1, help="how many (default 1)")
    parser.add_argument("--gpu", metavar="KIND", default="h100", help="a100, b200, h100 (default), h200, l40s, rtx4090")
    parser.add_argument(
        "--utilisation", metavar="X", type=float, default=0.4, help="share of their peak that steps reach (default 0.4)"
    )
    parser.add_argument("--price", metavar="X", type=float, help="of a GPU for an hour, in any money")
    parser.add_argument("--caption-ids", metavar="N", type=int, default=32, help="ids of a caption (default 32)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the figures."""
    data = load_recipe(arguments.recipe, arguments.overrides)
    if data.get("task") != "lm":
        raise ConfigError(
            f"{arguments.recipe} is of the task {data.get('task')!r}, and what is planned is a language model (task"
            " lm); what a codec costs says 'tokvid info CODEC --size TxHxW'"
        )
    if arguments.caption_ids < 0:
        raise ConfigError(f"--caption-ids must be at least 0, got {arguments.caption_ids}")
    from tokvid.config import from_mapping
    from tokvid_lm.plan import GPUS, Cluster, plan_lm
    from tokvid_lm.training_config import LMRecipe
    from tokvid_tokenizers import load_codec

    cluster = Cluster(gpu=arguments.gpu, count=arguments.gpus, utilisation=arguments.utilisation, price=arguments.price)
    recipe = from_mapping(LMRecipe, data)
    plan = plan_lm(recipe, load_codec(recipe.codec), cluster, caption_ids=arguments.caption_ids)
    if arguments.json:
        print(json.dumps(plan, indent=2))
    else:
        gpu = GPUS[cluster.gpu]
        peak = f"{gpu.peak / 1e12:.0f} TFLOP/s of bfloat16 at most, {gpu.memory / 2**30:.0f} GiB"
        print(f"{cluster.count} x {cluster.gpu} ({peak}), {cluster.utilisation:.0%} of the peak assumed")
        print("\n".join(table(plan)))
    return 0


def table(plan: Mapping[str, Any]) -> list[str]:
    """The figures of a plan as lines to read."""
    clip, document, model, step, run = (plan[name] for name in ("clip", "document", "model", "step", "run"))
    lines = [
        f"clip      {clip['codes']:,} codes, {clip['ids']:,} ids",
        f"document  {document['ids']:,.0f} ids in the mean, {document['longest']:,} at most, captions of"
        f" {document['caption_ids_assumed']} assumed",
        f"model     {_count(model['parameters'])} parameters, {_count(model['trained'])} of them trained,"
        f" {model['ids']:,} ids",
        f"step      {step['ids']:,} ids, {step['flops'] / 1e12:,.3g} TFLOP forward and backward",
        f"KV cache  {_mebibytes(plan['kv_cache_bytes_a_clip'])} a clip in bfloat16",
        f"run       {run['steps']:,} steps, {_count(run['documents'])} documents, {_duration(run['hours'])}"
        + ("" if run["cost"] is None else f", cost {run['cost']:,.2f}"),
        "",
        "memory a GPU, MiB     weights  gradients  optimizer  between passes       all",
    ]
    for row in plan["memory"]:
        name = "torch alone, float32" if row["zero"] is None else f"ZeRO {row['zero']}, bfloat16"
        numbers = (row["weights"], row["gradients"], row["optimizer"], row["between_passes"], row["total"])
        widths = (9, 11, 11, 16, 10)
        cells = "".join(f"{number / 2**20:{width},.0f}" for number, width in zip(numbers, widths, strict=True))
        lines.append(f"{name:<20}{cells}  {'fits' if row['fits'] else 'too much'}")
    return lines


def _count(number: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)


def _duration(hours: float) -> str:
    for size, unit in ((1, "hours"), (1 / 60, "minutes")):
        if hours >= size:
            return f"{hours / size:,.1f} {unit}"
    return f"{hours * 3600:.2g} seconds"


def _mebibytes(number: int) -> str:
    return f"{number / 2**20:,.1f} MiB"
