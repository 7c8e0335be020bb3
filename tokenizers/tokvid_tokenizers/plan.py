"""What a codec recipe takes on given GPUs: codes a clip, arithmetic, memory a GPU by ZeRO stage, hours and cost.

The networks and losses are the recipe's own, without memory (:mod:`tokvid_tokenizers.step_cost`). What is assumed and
not counted: which share of a GPU's peak a step reaches, and the quantizer's arithmetic.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from tokvid.cluster import GPUS, Cluster, memory_row, state_bytes
from tokvid.errors import ConfigError
from tokvid_tokenizers.feed import BucketConfig
from tokvid_tokenizers.quantizers import build_quantizer
from tokvid_tokenizers.step_cost import EmptyTraining, Shape
from tokvid_tokenizers.training_config import CodecRecipe, CodecTrainingConfig


def plan_codec(recipe: CodecRecipe, cluster: Cluster) -> dict[str, Any]:
    """The figures of a run, by name.

    Raises :class:`ConfigError` for batches that the GPUs cannot share evenly.
    """
    training = recipe.training
    empty = EmptyTraining(recipe)
    bf16 = training.precision != "fp32"
    buckets = training.buckets or (BucketConfig(),)
    shapes = [_shape(recipe, bucket, cluster.count) for bucket in buckets]
    costs: dict[tuple[int, bool, bool], float] = {}
    flops, clips = 0.0, 0.0
    for steps, shares, learns, listens in _stretches(training, buckets):
        for number, share in shares.items():
            case = (number, learns, listens)
            if case not in costs:
                costs[case] = empty.flops(shapes[number], learns=learns, listens=listens, bf16=bf16)
            flops += steps * share * costs[case] * cluster.count
            clips += steps * share * shapes[number].clips * cluster.count
    kept = max(empty.kept(shapes[number], listens=listens, bf16=bf16) for number, _, listens in costs)
    hours = flops / (cluster.count * GPUS[cluster.gpu].peak * cluster.utilisation) / 3600
    # Muon wants whole matrices, and ZeRO 3 takes a codec's last layer apart: the training refuses both.
    stages = (None, 0) if training.optimizer.kind == "muon" else (None, 0, 1, 2)
    num_frames, (height, width) = recipe.data.num_frames, recipe.data.size
    quantizer = build_quantizer(recipe.codec.quantizer)
    codes = recipe.codec.grid_for(num_frames, height, width).cells * quantizer.num_codebooks
    return {
        "clip": {
            "size": [num_frames, height, width],
            "codes": codes,
            "bits": round(codes * math.log2(quantizer.codebook_size), 1) if codes else None,
        },
        "precision": "bf16" if bf16 else "fp32",
        "model": {"parameters": empty.codec, "trained": empty.trained, "discriminator": empty.discriminator},
        "step": {"clips": clips / training.steps, "flops": flops / training.steps},
        "memory": [_memory(recipe, empty, stage, kept, cluster) for stage in stages],
        "run": {
            "steps": training.steps,
            "clips": round(clips),
            "flops": flops,
            "hours": hours,
            "cost": None if cluster.price is None else hours * cluster.count * cluster.price,
        },
    }


def _shape(recipe: CodecRecipe, bucket: BucketConfig, gpus: int) -> Shape:
    """What one process sees of a batch."""
    clips = bucket.batch_size or recipe.training.batch_size
    if clips % gpus:
        raise ConfigError(f"a batch of {clips} clips cannot be shared by {gpus} GPUs: make it a multiple of them")
    height, width = bucket.size or recipe.data.size
    num_frames = bucket.num_frames or recipe.data.num_frames
    return Shape(clips=clips // gpus, num_frames=num_frames, height=height, width=width)


def _stretches(
    training: CodecTrainingConfig, buckets: tuple[BucketConfig, ...]
) -> Iterator[tuple[int, dict[int, float], bool, bool]]:
    """Steps in a row of one kind: how many, the share of each bucket in them, whether the adversary learns and is
    heard."""
    adversarial = training.adversarial
    begins = training.steps if adversarial is None else adversarial.start_step
    heard = training.steps if adversarial is None else adversarial.start_step + adversarial.warmup_steps
    cuts = {0, training.steps, begins, heard}
    for bucket in buckets:
        cuts |= {bucket.from_step, training.steps if bucket.until_step is None else bucket.until_step}
    inside = sorted(cut for cut in cuts if 0 <= cut <= training.steps)
    for start, stop in itertools.pairwise(inside):
        shares = {number: bucket.share for number, bucket in enumerate(buckets) if bucket.is_active(start)}
        whole = sum(shares.values())
        normal = {number: share / whole for number, share in shares.items()}
        yield stop - start, normal, start >= begins, start >= heard and bool(adversarial and adversarial.weight)


def _memory(
    recipe: CodecRecipe, empty: EmptyTraining, stage: int | None, kept: int, cluster: Cluster
) -> dict[str, object]:
    """A codec stays in float32 under DeepSpeed too; with averaged weights there is a copy of it."""
    moments = None if stage else empty.moments  # ZeRO's parts are of AdamW's states
    trained = empty.trained + empty.discriminator
    state = state_bytes(
        empty.codec + empty.discriminator, trained, stage=stage, gpus=cluster.count, moments=moments, bf16=False
    )
    copy = 4 * empty.codec if recipe.training.average_decay else 0
    return memory_row(state, kept + copy, stage=stage, gpu=cluster.gpu)
