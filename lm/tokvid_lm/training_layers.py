"""The layers of a language model as a training wants them: compiled, computed again, with our own attention and norms.

It knows a recipe's training settings and nothing of what is learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from transformers import PreTrainedModel

from tokvid_lm import block_attention
from tokvid_lm.attention_windows import layer_windows
from tokvid_lm.compiled_layers import compiled_layers
from tokvid_lm.fused_norm import fused_norms, has_fused_norms
from tokvid_lm.recomputed_layers import recomputed_layers
from tokvid_lm.training_config import LMTrainingConfig


@contextmanager
def training_layers(config: LMTrainingConfig, model: PreTrainedModel) -> Iterator[None]:
    """Inside, ``model`` is trained as ``config`` says; layers are computed again as they are computed."""
    fast = compiled_layers(model) if config.compile else _fast_parts(model)
    with fast, recomputed_layers(model) if config.checkpoint_layers else nullcontext():
        yield


@contextmanager
def _fast_parts(model: PreTrainedModel) -> Iterator[None]:
    """On a processor our own attention and norms, if they fit."""
    fits = has_fused_norms(model) and not isinstance(layer_windows(model.config), dict)
    if model.device.type != "cpu" or not fits or getattr(model.config.get_text_config(), "attention_dropout", None):
        yield
        return
    chosen = model.config._attn_implementation
    model.set_attn_implementation(block_attention.register())
    try:
        with fused_norms(model):
            yield
    finally:
        model.set_attn_implementation(chosen)
