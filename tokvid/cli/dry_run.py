"""A recipe tried at a tiny size: what would fail after hours of preparation fails here in seconds.

Every part of the recipe is built as it says, but for the data, which are a few small sprite clips (and a sentence for
every text), the number of steps (one or more of every bucket), and what it would start from: a small model stands in
for a language model on the Hub. Nothing is written.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokvid.cli.clips import load_held_out, load_splits

if TYPE_CHECKING:
    from tokvid_tokenizers.feed import BucketConfig

# Of the network of the perceptual distance: less would leave nothing of a picture.
_SMALLEST_SIDE = 32
_STEPS = 2
_STAND_IN_CODEC = "preset:tiny"
_PASSAGE = 64
_STAND_IN_TEXT = "A fox that moves left is seen no more. " * 200


def dry_run(data: Mapping[str, Any]) -> dict[str, Any]:
    """Train what the recipe ``data`` describes for two steps; its parameters, and for a codec its arithmetic."""
    return {"codec": _codec, "refiner": _refiner, "lm": _lm, "head": _head}[data["task"]](data)


def _codec(data: Mapping[str, Any]) -> dict[str, Any]:
    from tokvid.config import from_mapping
    from tokvid_tokenizers.cost import codec_cost
    from tokvid_tokenizers.training import train_codec
    from tokvid_tokenizers.training_config import CodecRecipe

    recipe = from_mapping(CodecRecipe, data)
    codec = recipe.codec
    cost = codec_cost(codec, recipe.data.num_frames, *recipe.data.size)
    buckets = [_tiny_bucket(bucket, step) for step, bucket in enumerate(recipe.training.buckets)]
    training: dict[str, Any] = {**data.get("training", {}), **_short(), "start_from": None, "trains": "all"}
    if buckets:  # each in a step of its own, and the last one goes on
        training |= {"steps": max(_STEPS, len(buckets)), "buckets": [*buckets[:-1], buckets[-1] | {"until_step": None}]}
    if recipe.training.adversarial is not None:
        heard = {"start_step": 0, "warmup_steps": 0, "ramp_steps": 0}
        training["adversarial"] = {**training["adversarial"], **heard}
    side = max(2 * codec.spatial_stride, _SMALLEST_SIDE)
    clips = _clips(side, 1 + 2 * codec.temporal_stride)
    with tempfile.TemporaryDirectory() as folder:
        tiny = from_mapping(CodecRecipe, {**data, "data": clips, "training": training, "output": folder})
        load = load_splits if tiny.training.clips == "memory" else load_held_out
        train_codec(tiny, *load(tiny.data))
    return {"parameters": cost.parameters, "gmac_a_clip": round(cost.macs / 1e9, 2), "codes_a_clip": cost.num_codes}


def _refiner(data: Mapping[str, Any]) -> dict[str, Any]:
    from tokvid.config import from_mapping
    from tokvid_tokenizers import load_codec
    from tokvid_tokenizers.refiner_training import RefinerRecipe, train_refiner

    recipe = from_mapping(RefinerRecipe, data)
    codec = load_codec(_STAND_IN_CODEC)
    patch = math.gcd(recipe.refiner.patch, codec.spatial_stride)
    training = {**data.get("training", {}), "steps": _STEPS, "batch_size": 2, "warmup_steps": 0, "log_every": 1}
    clips = _clips(2 * codec.spatial_stride, 1 + codec.temporal_stride)
    changed = {"data": clips, "training": training, "refiner": {**data.get("refiner", {}), "patch": patch}}
    with tempfile.TemporaryDirectory() as folder:
        tiny = from_mapping(RefinerRecipe, {**data, **changed, "output": folder})
        head = train_refiner(tiny, load_splits(tiny.data)[0], codec=codec).head
    assert head is not None
    return {"parameters_of_the_stand_in": sum(parameter.numel() for parameter in head.parameters())}


def _lm(data: Mapping[str, Any]) -> dict[str, Any]:
    from tokvid.config import from_mapping
    from tokvid_lm.building import build_lm
    from tokvid_lm.training import train_lm
    from tokvid_lm.training_config import LMRecipe, PretrainedModelConfig, ShardDataConfig, TrainedModelConfig
    from tokvid_tokenizers import VideoCodec, load_codec
    from tokvid_tokenizers.quantizers import KLConfig

    recipe = from_mapping(LMRecipe, data)
    model = recipe.model
    from_hub = isinstance(model, PretrainedModelConfig) and not Path(model.name).exists()
    stands_in = from_hub or isinstance(model, TrainedModelConfig)  # of that the codec is another one
    codec = load_codec(_STAND_IN_CODEC)
    learned = codec if recipe.head is None else VideoCodec(replace(codec.config, quantizer=KLConfig(dim=4)))
    training = {**data.get("training", {}), **_short(), "curriculum": []}
    clips = _clips(2 * codec.spatial_stride, 1 + codec.temporal_stride)
    changed: dict[str, Any] = {
        "data": clips,
        "training": training,
        "codec": _STAND_IN_CODEC,
        "evaluation": {"clips": 1},
    }
    if recipe.dialogues is not None:
        shape = {name: clips[name] for name in ("size", "num_frames")}
        changed["dialogues"] = {"kind": "sprites", "train": 4, "held_out": 2, **shape}
    if recipe.factors:
        twos = [2] * (len(recipe.factors) - 1)
        changed["factors"] = [*twos, codec.codebook_size // 2 ** len(twos)]
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text(_STAND_IN_TEXT, encoding="utf-8")
        if "mixture" in training:
            parts = training["mixture"]
            read = {"file": str(text), "passage": _PASSAGE}
            training["mixture"] = [part | read if part.get("file") else part for part in parts]
        if stands_in:
            name = _stand_in_model(Path(folder, "model"))
            if isinstance(model, TrainedModelConfig):
                untrained = {**data, **changed, "model": {"kind": "pretrained", "name": name}}
                name = str(Path(folder, "trained"))
                build_lm(from_mapping(LMRecipe, untrained), codec, ()).save_pretrained(name)
            longer = {"max_positions": None} if isinstance(model, TrainedModelConfig) else {}
            changed["model"] = {**data["model"], "name": name, **longer}
        tiny = from_mapping(LMRecipe, {**data, **changed, "output": str(Path(folder, "run"))})
        assert not isinstance(tiny.data, ShardDataConfig)
        lm = train_lm(tiny, *load_splits(tiny.data), codec=learned).lm
    count = sum(parameter.numel() for parameter in lm.model.parameters())
    return {"parameters_of_the_stand_in" if stands_in else "parameters": count}


def _head(data: Mapping[str, Any]) -> dict[str, Any]:
    from tokvid.config import from_mapping
    from tokvid_lm import VideoLM
    from tokvid_lm.head_training import HeadRecipe, train_head
    from tokvid_tokenizers import load_codec

    from_mapping(HeadRecipe, data)
    codec = load_codec(_STAND_IN_CODEC)
    clips = _clips(2 * codec.spatial_stride, 1 + codec.temporal_stride)
    training = {**data.get("training", {}), "steps": _STEPS, "batch_size": 2, "warmup_steps": 0, "log_every": 1}
    with tempfile.TemporaryDirectory() as folder:
        lm = VideoLM.extend(_stand_in_model(Path(folder, "model")), codec=codec)
        tiny = from_mapping(
            HeadRecipe, {**data, "data": clips, "training": training, "output": str(Path(folder, "run"))}
        )
        head = train_head(tiny, load_splits(tiny.data)[0], lm=lm).diffusion_head
    assert head is not None
    return {"parameters_of_the_stand_in": sum(parameter.numel() for parameter in head.parameters())}


def _stand_in_model(folder: Path) -> str:
    """A small language model with a text tokenizer, saved in ``folder``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tokvid_lm.text_tokenizer import train_text_tokenizer

    tokenizer = train_text_tokenizer(["a fox moves left"], 300)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _tiny_bucket(bucket: BucketConfig, step: int) -> dict[str, Any]:
    """The bucket as that of one step, of the tiny clips; of pictures, of their first frames."""
    return {"num_frames": 1 if bucket.num_frames == 1 else None, "from_step": step, "until_step": step + 1}


def _short() -> dict[str, Any]:
    """The part of a training that is about its length."""
    return {"steps": _STEPS, "batch_size": 2, "warmup_steps": 0, "log_every": 1, "validate_every": 1}


def _clips(side: int, num_frames: int) -> dict[str, Any]:
    size = {"size": [side, side], "num_frames": num_frames}
    return {"kind": "sprites", "train_clips": 4, "held_out_clips": 2, **size}
