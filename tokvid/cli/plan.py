"""What a recipe takes before anything is bought: codes or ids, arithmetic, memory a GPU, hours, cost.

tokvid plan codec/k600-128 --gpus 8
tokvid plan lm/sprites-gpu --codec=tokvid-sprites-codec
tokvid plan lm/web-7b --codec=codec/web-256 --gpus 64 --gpu h100 --price 2.5
tokvid plan my-7b.yaml --gpus 64 --training.checkpoint_layers=false --json

It reads the recipe and, of a language model, the codec (its folder or its recipe) and a pretrained model's
configuration and text tokenizer, no weights. Of code shards that are not made yet the clips are those of the codec's
recipe. The hours are the arithmetic of all steps at --utilisation of the GPUs' stated peak; of attention all of each
row counts, and a quantizer's arithmetic, some per cent of a codec's, does not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokvid.errors import ConfigError
from tokvid.recipe import load_recipe, shipped_recipes

if TYPE_CHECKING:
    from tokvid.cluster import Cluster


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
    from tokvid.cluster import GPUS, Cluster

    data = load_recipe(arguments.recipe, arguments.overrides)
    if data.get("task") not in _PLANS:
        raise ConfigError(
            f"{arguments.recipe} is of the task {data.get('task')!r}; what is planned are the tasks {', '.join(_PLANS)}"
        )
    if arguments.caption_ids < 0:
        raise ConfigError(f"--caption-ids must be at least 0, got {arguments.caption_ids}")
    if arguments.gpus < 1:
        raise ConfigError(f"--gpus must be at least 1, got {arguments.gpus}")
    cluster = Cluster(gpu=arguments.gpu, count=arguments.gpus, utilisation=arguments.utilisation, price=arguments.price)
    plan, lines = _PLANS[data["task"]](data, cluster, arguments.caption_ids)
    if arguments.json:
        print(json.dumps(plan, indent=2))
    else:
        gpu = GPUS[cluster.gpu]
        peak = f"{gpu.peak / 1e12:.0f} TFLOP/s of bfloat16 at most, {gpu.memory / 2**30:.0f} GiB"
        print(f"{cluster.count} x {cluster.gpu} ({peak}), {cluster.utilisation:.0%} of the peak assumed")
        print("\n".join(lines))
        if plan["precision"] == "fp32":
            print(_FP32)
    return 0


def _plan_codec(data: Mapping[str, Any], cluster: Cluster, caption_ids: int) -> tuple[dict[str, Any], list[str]]:
    from tokvid.config import from_mapping
    from tokvid_tokenizers.plan import plan_codec
    from tokvid_tokenizers.training_config import CodecRecipe

    plan = plan_codec(from_mapping(CodecRecipe, data), cluster)
    return plan, codec_table(plan)


def _plan_lm(data: Mapping[str, Any], cluster: Cluster, caption_ids: int) -> tuple[dict[str, Any], list[str]]:
    from tokvid.config import from_mapping
    from tokvid_lm.plan import plan_lm
    from tokvid_lm.training_config import LMRecipe, ShardDataConfig
    from tokvid_tokenizers import VideoCodec, load_codec
    from tokvid_tokenizers.training_config import CodecRecipe

    recipe = from_mapping(LMRecipe, data)
    if recipe.codec not in shipped_recipes() and Path(recipe.codec).suffix not in (".yaml", ".yml"):
        codec = load_codec(recipe.codec)
    else:  # neither the codec nor its codes need be there
        planned = from_mapping(CodecRecipe, load_recipe(recipe.codec))
        codec = VideoCodec(planned.codec)
        if isinstance(recipe.data, ShardDataConfig) and not Path(recipe.data.path).is_dir():
            recipe = replace(recipe, data=planned.data)
    plan = plan_lm(recipe, codec, cluster, caption_ids=caption_ids)
    return plan, table(plan)


_MUON = "ZeRO 1 to 3 are of AdamW, which they want: --training.optimizer='{kind: adamw}'"
_FP32 = "the recipe computes in float32, whose peak lies far below that of bfloat16: lower --utilisation"
_PLANS = {"codec": _plan_codec, "lm": _plan_lm}


def codec_table(plan: Mapping[str, Any]) -> list[str]:
    """The figures of a codec's plan as lines to read."""
    clip, model, step, run = (plan[name] for name in ("clip", "model", "step", "run"))
    codes = f"{clip['codes']:,} codes, {clip['bits']:,.0f} bits" if clip["codes"] else "no codes"
    judge = f", {_count(model['discriminator'])} of a discriminator" if model["discriminator"] else ""
    return [
        f"clip      {'x'.join(map(str, clip['size']))}: {codes}",
        f"model     {_count(model['parameters'])} parameters, {_count(model['trained'])} of them trained{judge}",
        f"step      {step['clips']:,.0f} clips, {step['flops'] / 1e12:,.3g} TFLOP forward and backward",
        f"run       {run['steps']:,} steps, {_count(run['clips'])} clips, {_time(run)}",
        "",
        *_memory_lines(plan["memory"], "float32"),
    ]


def table(plan: Mapping[str, Any]) -> list[str]:
    """The figures of a plan as lines to read."""
    clip, document, model, step, run = (plan[name] for name in ("clip", "document", "model", "step", "run"))
    return [
        f"clip      {clip['codes']:,} codes, {clip['ids']:,} ids",
        f"document  {document['ids']:,.0f} ids in the mean, {document['longest']:,} at most, captions of"
        f" {document['caption_ids_assumed']} assumed",
        f"model     {_count(model['parameters'])} parameters, {_count(model['trained'])} of them trained,"
        f" {model['ids']:,} ids",
        f"step      {step['ids']:,} ids, {step['flops'] / 1e12:,.3g} TFLOP forward and backward",
        f"KV cache  {_mebibytes(plan['kv_cache_bytes_a_clip'])} a clip in bfloat16",
        f"run       {run['steps']:,} steps, {_count(run['documents'])} documents, {_time(run)}",
        "",
        *_memory_lines(plan["memory"], "bfloat16" if plan["precision"] == "bf16" else "float32"),
        *([_MUON] if plan["optimizer"] == "muon" else []),
    ]


def _memory_lines(rows: Sequence[Mapping[str, Any]], of_zero: str) -> list[str]:
    """A line a way of training; ``of_zero`` is the type of the weights under DeepSpeed."""
    lines = ["memory a GPU, MiB     weights  gradients  optimizer  between passes       all"]
    for row in rows:
        name = "torch alone, float32" if row["zero"] is None else f"ZeRO {row['zero']}, {of_zero}"
        numbers = (row["weights"], row["gradients"], row["optimizer"], row["between_passes"], row["total"])
        widths = (9, 11, 11, 16, 10)
        cells = "".join(f"{number / 2**20:{width},.0f}" for number, width in zip(numbers, widths, strict=True))
        lines.append(f"{name:<20}{cells}  {'fits' if row['fits'] else 'too much'}")
    return lines


def _time(run: Mapping[str, Any]) -> str:
    return f"{_duration(run['hours'])} of arithmetic" + ("" if run["cost"] is None else f", cost {run['cost']:,.2f}")


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
