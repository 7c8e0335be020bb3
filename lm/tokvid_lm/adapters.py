"""Trained adapters as files: what peft reads, beside what a :class:`VideoLM` needs besides its model.

The rows of new ids go with them, as peft's trainable tokens, so that base model and folder together are the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tokvid.errors import CheckpointError, ModelError
from tokvid.saved_json import read_mapping
from tokvid_lm.head import NEW_ROWS
from tokvid_lm.loading import load_causal_lm
from tokvid_lm.lora import LoRAConfig

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # what peft calls the model inside its own


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """What was trained beside the model ``base``: matrices by peft's names, and ``rows`` of the tables named there."""

    base: str
    config: LoRAConfig
    tensors: dict[str, Tensor]
    targets: tuple[str, ...]
    tables: tuple[str, ...]
    rows: range

    def save(self, folder: Path) -> None:
        """Write peft's two files into ``folder``."""
        import peft

        settings = peft.LoraConfig(
            r=self.config.rank,
            lora_alpha=self.config.alpha,  # type: ignore[arg-type]
            target_modules=list(self.targets),
            trainable_token_indices={table: list(self.rows) for table in self.tables},
            base_model_name_or_path=self.base,
            task_type="CAUSAL_LM",
            inference_mode=True,
        )
        settings.save_pretrained(str(folder))
        save_file(self.tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def trained_adapters(model: PreTrainedModel, config: LoRAConfig, *, base: str) -> Adapters:
    """Those that :func:`~tokvid_lm.lora.insert_adapters` put into ``model``, before they are merged."""
    from peft.tuners.lora import LoraLayer

    tensors: dict[str, Tensor] = {}
    layers = {name: cast(Any, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, layer in layers.items():
        for half, matrices in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            (matrix,) = matrices.values()
            tensors[f"{_PREFIX}{name}.{half}.weight"] = _kept(matrix.weight)
    tables = [name for name, module in model.named_modules() if NEW_ROWS in module._parameters]
    count = 0
    for name in tables:
        rows = model.get_submodule(name).get_parameter(NEW_ROWS)
        count = len(rows)
        tensors[f"{_PREFIX}{name}.token_adapter.trainable_tokens_delta"] = _kept(rows)
    total = len(cast(Tensor, model.get_input_embeddings().weight))
    return Adapters(
        base=base,
        config=config,
        tensors=tensors,
        targets=tuple(layers),
        tables=tuple(name.rpartition(".")[2] for name in tables),
        rows=range(total - count, total),
    )


def base_of(folder: Path) -> str | None:
    """The model whose adapters ``folder`` holds; None where there are none."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    base = read_mapping(folder / ADAPTER_CONFIG, "adapters").get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG} does not say of which model its adapters are")
    return base


def load_adapted(folder: Path, base: str, *, rows: int, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model ``base`` with ``rows`` ids and the adapters in ``folder`` merged: a plain model, in ``dtype`` or
    float32.

    Raises :class:`ModelError` without peft, without that model, and for adapters that are not of it.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError("adapters (lora) need peft: pip install 'tokvid[peft]'") from error
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(f"{folder / ADAPTER_WEIGHTS} is missing: peft would look for a pickle in its place")
    # In float32, as they were trained: sums in bf16 would lose what small adapters add.
    model = load_causal_lm(base, dtype=torch.float32)
    model.resize_token_embeddings(rows, mean_resizing=False)
    try:
        adapted: Any = PeftModel.from_pretrained(model, str(folder))
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"the adapters in {folder} are not of {base}: {first}") from error
    return merged if dtype is None else merged.to(dtype)  # type: ignore[arg-type,unused-ignore]


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone().contiguous()
