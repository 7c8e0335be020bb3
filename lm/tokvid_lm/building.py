"""The model that a recipe describes, before its first step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tokvid.errors import ConfigError
from tokvid.processes import is_main_process
from tokvid_lm.chat_tokens import with_chat
from tokvid_lm.continuous import is_continuous
from tokvid_lm.latent_tokens import with_latents
from tokvid_lm.text_tokenizer import train_text_tokenizer
from tokvid_lm.training_config import LMRecipe, PretrainedModelConfig, ScratchModelConfig, TrainedModelConfig
from tokvid_lm.video_lm import VideoLM
from tokvid_tokenizers import VideoCodec


def build_lm(recipe: LMRecipe, codec: VideoCodec, captions: Sequence[str]) -> VideoLM:
    """The model of a recipe before its first step, in float32; the same for the same seed and captions."""
    model = recipe.model
    if isinstance(model, TrainedModelConfig):
        return _trained(recipe, model, codec)
    if isinstance(model, PretrainedModelConfig):
        lm = VideoLM.extend(model.name, codec=codec, **_writing(recipe))
        lm.model.float()
        return lm
    tokenizer = train_text_tokenizer(captions, model.text_vocab_size)
    torch.manual_seed(recipe.seed)
    scratch = _scratch_model(model, tokenizer)
    return VideoLM.extend(scratch, codec=codec, tokenizer=tokenizer, **_writing(recipe))


def _trained(recipe: LMRecipe, model: TrainedModelConfig, codec: VideoCodec) -> VideoLM:
    """The saved model, which writes documents as the recipe says."""
    name = model.name
    lm = VideoLM.from_pretrained(name, dtype=torch.float32)
    if lm.diffusion_head is not None and not lm.is_continuous:
        _leave_head_out(lm, name)
    if is_continuous(codec) and not lm.is_continuous:
        lm = with_latents(lm, codec)
    if recipe.chats and not lm.vocabulary.chats:
        lm = with_chat(lm)
    if lm.codec.codec_id != codec.codec_id:
        raise ConfigError(
            f"the model {name} speaks the codes of {lm.codec.codec_id}, the recipe's codec is {codec.codec_id}: set"
            f" codec to the one in it, {name}/codec"
        )
    written = {
        "template": lm.template.kind,
        "layout": lm.layout.kind,
        "positions": lm.positions.kind,
        "factors": lm.vocabulary.factors,
        "num_actions": lm.vocabulary.num_actions,
    }
    wrong = [f"{key}={value}" for key, value in written.items() if value != getattr(recipe, key)]
    if wrong:
        raise ConfigError(f"the model {name} was made with other documents than the recipe's: set {', '.join(wrong)}")
    if model.max_positions is not None:
        _lengthen(lm.model, model.max_positions, name)
    return lm


def _leave_head_out(lm: VideoLM, name: str) -> None:
    """Take the head that refines codes from ``lm``, and say so: its hidden states will be others."""
    lm.diffusion_head = None
    if is_main_process():
        print(
            f"the diffusion head of {name} is left out: hidden states will be others; train one for the model that"
            " comes of this by the recipe lm/sprites-hybrid, with --lm= it",
            file=sys.stderr,
        )


def _lengthen(model: PreTrainedModel, positions: int, name: str) -> None:
    """Let ``model`` read so many ids; its rotary positions go on as they are."""
    config = model.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "default":
        raise ConfigError(
            f"the model {name} has no plain rotary positions, which alone go on without new weights: leave"
            " model.max_positions out"
        )
    if positions < config.max_position_embeddings:
        raise ConfigError(
            f"model.max_positions is {positions}, the model {name} reads {config.max_position_embeddings} already"
        )
    config.max_position_embeddings = positions


def _writing(recipe: LMRecipe) -> dict[str, Any]:
    """How the documents of a recipe are written, and the seed of the new rows."""
    return {
        "template": recipe.template,
        "layout": recipe.layout,
        "positions": recipe.positions,
        "factors": recipe.factors,
        "num_actions": recipe.num_actions,
        "chat": recipe.chats,
        "seed": recipe.seed,
    }


def scratch_config(model: ScratchModelConfig, vocab_size: int, **special_ids: int | None) -> LlamaConfig | Qwen3Config:
    """What transformers calls a model from nothing of ``vocab_size`` ids."""
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.hidden_size // model.num_heads,
        "max_position_embeddings": model.max_positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tie_embeddings,
        **special_ids,
    }
    return Qwen3Config(**shape) if model.architecture == "qwen3" else LlamaConfig(**shape)


def _scratch_model(model: ScratchModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model whose layers add nothing at first: what leads back into the residual stream starts at zero."""
    config = scratch_config(
        model,
        len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    built = Qwen3ForCausalLM(config) if isinstance(config, Qwen3Config) else LlamaForCausalLM(config)
    for layer in built.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    return built
