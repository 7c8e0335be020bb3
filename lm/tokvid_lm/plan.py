"""What a language model recipe takes on given GPUs: ids, arithmetic, memory a GPU by ZeRO stage, hours and cost.

Documents are those that the recipe writes, of clips without content; the model is one without memory
(:mod:`tokvid_lm.step_cost`). What is assumed and not counted: how many ids a caption has, and which share of a GPU's
peak a step reaches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokvid.cluster import GPUS, Cluster, memory_row, state_bytes
from tokvid.errors import ConfigError
from tokvid.hub import local_folder
from tokvid.optimizer import MuonConfig
from tokvid_lm.building import scratch_config
from tokvid_lm.chat_tokens import with_turns
from tokvid_lm.code_source import CodeSource
from tokvid_lm.document_sizes import DocumentSizes, document_sizes, planned_clips
from tokvid_lm.extend import text_tokenizer_size
from tokvid_lm.loading import load_config, load_saved_tokenizer, load_tokenizer
from tokvid_lm.objectives.cross_entropy import DEVICE_CHUNK
from tokvid_lm.step_cost import EmptyModel
from tokvid_lm.training import adam_names
from tokvid_lm.training_config import LMRecipe, PretrainedModelConfig, ScratchModelConfig, TrainedModelConfig
from tokvid_lm.video_lm_folder import read_facts, saved_vocabulary
from tokvid_lm.vocabulary import VideoVocabulary, special_tokens
from tokvid_tokenizers import VideoCodec

_LIVE = 10**9  # parameters, the default of stage3_max_live_parameters
_PASSES = 3  # of a matrix: forward, and backward to its input and to its weight


def plan_lm(recipe: LMRecipe, codec: VideoCodec, cluster: Cluster, *, caption_ids: int = 32) -> dict[str, Any]:
    """The figures of a run, by name.

    Raises :class:`ModelError` for a model that is not known or cannot be counted, and :class:`ConfigError` for
    documents that are longer than a row.
    """
    if recipe.head is not None:
        raise ConfigError(
            "a model that draws latents with a head is not planned yet: leave head out for a model of codes"
        )
    config, vocabulary = _extended(recipe, codec)
    text_config = config.get_text_config(decoder=True)
    lora = recipe.model.lora if isinstance(recipe.model, PretrainedModelConfig) else None
    bf16 = recipe.training.precision != "fp32"
    # torch alone keeps float32 weights and computes in bfloat16; of DeepSpeed's bfloat16 both are.
    alone, zero = (
        EmptyModel(config, dtype=dtype, lora=lora, first_new_row=vocabulary.text_size)
        for dtype in (torch.float32, torch.bfloat16 if bf16 else torch.float32)
    )
    clips = planned_clips(recipe, codec)
    stages = list(_stages(recipe, clips, codec, vocabulary, caption_ids))
    training, flops, documents, kept_alone, kept_zero = recipe.training, 0.0, 0.0, 0, 0
    for steps, rows, sizes in stages:
        length = _row_length(recipe, sizes, getattr(text_config, "max_position_embeddings", None))
        in_a_row = max(1.0, training.pack / sizes.mean)
        head = _head_cost(recipe, sizes, vocabulary, text_config.hidden_size, documents=rows * in_a_row)
        how: dict[str, Any] = {"masked": _is_masked(recipe), "recomputed": training.checkpoint_layers}
        cost = alone.cost(rows, length, autocast=bf16, **how)
        kept_alone = max(kept_alone, cost.kept + cost.again + head.kept)
        cost = zero.cost(rows, length, autocast=False, **how)
        kept_zero = max(kept_zero, cost.kept + cost.again + head.kept)
        passes = steps * training.gradient_accumulation * cluster.count
        flops += passes * (cost.flops + head.flops)
        documents += passes * rows * in_a_row
    hours = flops / (cluster.count * GPUS[cluster.gpu].peak * cluster.utilisation) / 3600
    whole = stages[-1][2]
    ids = training.batch_size * (training.pack or whole.longest) * training.gradient_accumulation * cluster.count
    moments = _moments(recipe, alone)
    zeros = (0, 1, 2) if lora is not None or recipe.positions != "1d" else (0, 1, 2, 3)
    return {
        "clip": {"codes": clips.grid_of(0).cells * codec.num_codebooks, "ids": whole.video},
        "document": {"ids": round(whole.mean, 1), "longest": whole.longest, "caption_ids_assumed": caption_ids},
        "optimizer": training.optimizer.kind,
        "precision": "bf16" if bf16 else "fp32",
        "model": {"ids": vocabulary.total_size, "parameters": alone.parameters, "trained": alone.trained},
        "step": {"ids": ids, "flops": flops / training.steps},
        "memory": [
            _memory(recipe, alone, None, cluster, kept_alone, moments),
            *(_memory(recipe, zero, stage, cluster, kept_zero, moments) for stage in zeros),
        ],
        "kv_cache_bytes_a_clip": _cache_bytes(text_config, caption_ids + whole.video),
        "run": {
            "steps": training.steps,
            "documents": round(documents),
            "flops": flops,
            "hours": hours,
            "cost": None if cluster.price is None else hours * cluster.count * cluster.price,
        },
    }


def _is_masked(recipe: LMRecipe) -> bool:
    """Whether rows bring a mask: packed ones do, and all but plain causal documents."""
    training = recipe.training
    return bool(training.pack) or any(entry.mode != "next_token" for entry in training.mixture)


def _row_length(recipe: LMRecipe, sizes: DocumentSizes, positions: int | None) -> int:
    """Ids of a row."""
    pack = recipe.training.pack
    if pack and sizes.longest > pack:
        raise ConfigError(f"a document takes {sizes.longest} ids and training.pack is {pack}: raise it")
    if positions is not None and sizes.longest_read > positions:
        raise ConfigError(
            f"a document takes {sizes.longest_read} ids but the model reads {positions}: lower the clips' size or"
            " number of frames, or take a model with more positions"
        )
    return pack or sizes.longest


def _cache_bytes(config: Any, ids: int) -> int:
    """Keys and values in bfloat16 of plain attention in every layer."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * 2 * int(config.num_hidden_layers) * int(heads) * int(size) * ids


def _memory(
    recipe: LMRecipe, empty: EmptyModel, stage: int | None, cluster: Cluster, kept: int, moments: int
) -> dict[str, Any]:
    bf16 = recipe.training.precision != "fp32"
    state = state_bytes(
        empty.parameters,
        empty.trained,
        stage=stage,
        gpus=cluster.count,
        moments=moments if stage is None else None,  # ZeRO's parts are of AdamW's states: Muon needs whole matrices
        bf16=bf16,
        accumulates=recipe.training.gradient_accumulation > 1,
    )
    if stage == 3:  # a layer's weights are put together for its turn, up to what DeepSpeed lets live at a time
        kept += (2 if bf16 else 4) * min(empty.parameters, _LIVE)
    return memory_row(state, kept, stage=stage, gpu=cluster.gpu)


def _moments(recipe: LMRecipe, empty: EmptyModel) -> int:
    """How many numbers the optimizer keeps: AdamW two for each of a parameter, Muon one, but for tables of ids."""
    if not isinstance(recipe.training.optimizer, MuonConfig):
        return 2 * empty.trained
    tables = set(adam_names(empty.model))
    of_adam = sum(parameter.numel() for name, parameter in empty.model.named_parameters() if name in tables)
    return empty.trained + of_adam


def _stages(
    recipe: LMRecipe, clips: CodeSource, codec: VideoCodec, vocabulary: VideoVocabulary, caption_ids: int
) -> Iterator[tuple[int, int, DocumentSizes]]:
    """Steps, rows a pass and sizes of the documents of each stage of the curriculum, and of the rest."""
    training, left = recipe.training, recipe.training.steps

    def sizes(latent_frames: int | None) -> DocumentSizes:
        return document_sizes(recipe, clips, codec, vocabulary, caption_ids=caption_ids, latent_frames=latent_frames)

    for stage in training.curriculum:
        left -= stage.steps
        yield stage.steps, stage.batch_size, sizes(stage.latent_frames)
    yield left, training.batch_size, sizes(None)


@dataclass(frozen=True, kw_only=True)
class _HeadCost:
    flops: float
    kept: int


def _head_cost(
    recipe: LMRecipe, sizes: DocumentSizes, vocabulary: VideoVocabulary, hidden_size: int, *, documents: float
) -> _HeadCost:
    """Of the output head for the labels of so many ``documents``: its products, a chunk of logits with its gradient,
    and the gradient of its rows, which is taken in the forward pass and waits for the backward one."""
    sliced = recipe.training.loss.sliced
    text, codes = documents * sizes.text_labels, documents * sizes.code_labels
    text_columns = vocabulary.code_offset if sliced else vocabulary.total_size
    code_columns = float(np.mean(vocabulary.slot_sizes)) if sliced else vocabulary.total_size
    logits = min(DEVICE_CHUNK, max(text * text_columns, codes * code_columns))
    columns = (text_columns if text else 0) + (sum(vocabulary.slot_sizes) if codes else 0)
    return _HeadCost(
        flops=2 * _PASSES * hidden_size * (text * text_columns + codes * code_columns),
        kept=int(2 * 4 * logits + 4 * hidden_size * min(columns, vocabulary.total_size)),
    )


def _extended(recipe: LMRecipe, codec: VideoCodec) -> tuple[Any, VideoVocabulary]:
    """The configuration of the recipe's model with all the ids that it will have, and those ids."""
    model = recipe.model
    if isinstance(model, TrainedModelConfig):
        folder = local_folder(model.name)
        saved, ids = load_config(folder), saved_vocabulary(folder, read_facts(folder))
        if recipe.chats and not ids.chats:
            ids = with_turns(ids, text_tokenizer_size(load_saved_tokenizer(folder)))
        text_config = saved.get_text_config(decoder=True)
        text_config.vocab_size = ids.total_size
        if model.max_positions is not None:
            text_config.max_position_embeddings = model.max_positions
        return saved, ids
    if isinstance(model, ScratchModelConfig):
        text_size = old_rows = model.text_vocab_size
        config: Any = scratch_config(model, text_size)
    else:
        config = load_config(model.name)
        text_size = text_tokenizer_size(load_tokenizer(model.name))
        old_rows = config.get_text_config(decoder=True).vocab_size
    names = special_tokens(recipe.num_actions, chat=recipe.chats)
    vocabulary = VideoVocabulary(
        text_size=text_size,
        special={name: text_size + place for place, name in enumerate(names)},
        code_offset=max(old_rows, text_size + len(names)),
        codebook_size=codec.codebook_size,
        num_codebooks=codec.num_codebooks,
        factors=recipe.factors,
    )
    config.get_text_config(decoder=True).vocab_size = vocabulary.total_size
    return config, vocabulary
