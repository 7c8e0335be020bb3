"""What a training step of a language model costs before it is built: parameters, arithmetic, memory for its backward.

The model is made without memory (torch's fake tensors), runs forward and backward, and is counted while it does, so
that the figures are those of the code and no formulas beside it, for any architecture and with adapters.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tokvid.errors import ModelError
from tokvid.kept_memory import kept_bytes
from tokvid_lm.lora import LoRAConfig, insert_adapters
from tokvid_lm.recomputed_layers import recomputed_layers

_ATTENTION = "tokvid_counted"
_DEVICE = "cpu"  # of the fake tensors: nothing is computed. Its attention keeps for the backward what a GPU's does.


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Of a batch that goes through a model forward and backward.

    ``flops`` count a multiplication and an addition as two; of attention the whole square counts, and the output head
    does not. ``kept`` bytes lie between the two passes beside parameters. ``again`` is what the largest layer keeps
    while it is computed again, if layers are.
    """

    flops: int
    kept: int
    again: int = 0


class EmptyModel:
    """A causal language model of ``config`` without memory, its weights of ``dtype``, and with ``lora`` its adapters.

    ``parameters`` are all of it, ``trained`` those that learn. Raises :class:`ModelError` for what cannot be made so.
    """

    def __init__(
        self, config: PreTrainedConfig, *, dtype: torch.dtype, lora: LoRAConfig | None = None, first_new_row: int = 0
    ) -> None:
        self._mode = FakeTensorMode()
        with _guarded(config), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=_register()).train()
            if lora is not None:
                insert_adapters(model, lora, first_new_row=first_new_row)
        with self._mode:
            _make_fake(model)
        self.model: PreTrainedModel = model
        counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        self.parameters: int = sum(count for count, _ in counts)
        self.trained: int = sum(count for count, learns in counts if learns)

    def cost(self, rows: int, length: int, *, masked: bool, autocast: bool, recomputed: bool = False) -> StepCost:
        """Of ``rows`` rows of ``length`` ids. ``masked`` rows bring a mask, others are plain and causal; with
        ``autocast`` the arithmetic is in bfloat16, whatever the weights are. With ``recomputed`` layers are computed
        again in the backward pass. Raises :class:`ModelError` for a model whose path depends on numbers."""
        layers = self.model.config.get_text_config().num_hidden_layers
        with _guarded(self.model.config), self._mode, torch.autocast(_DEVICE, torch.bfloat16, enabled=autocast):
            ids, positions = torch.zeros(rows, length, dtype=torch.long), torch.arange(length).expand(rows, -1)
            mask = torch.ones(rows, 1, length, length, dtype=torch.bool) if masked else None
            batch = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
            kept = self._kept(batch)
            if not recomputed:
                return StepCost(flops=self._flops(batch), kept=kept)
            with recomputed_layers(self.model):
                inputs = self._kept(batch)
                return StepCost(flops=self._flops(batch), kept=inputs, again=(kept - inputs) // layers)

    def _flops(self, batch: Mapping[str, Tensor | None]) -> int:
        """Operations of both passes."""
        # Of the ways to compute attention, the one that the counter knows on every device.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.model.base_model(**batch, use_cache=False).last_hidden_state.sum().backward()
        self.model.zero_grad()
        total: int = counter.get_total_flops()
        return total

    def _kept(self, batch: Mapping[str, Tensor | None]) -> int:
        """Bytes between both passes, those of the batch included."""
        return kept_bytes(
            lambda: self.model.base_model(**batch, use_cache=False).last_hidden_state,
            inputs=[tensor for tensor in batch.values() if tensor is not None],
            own=(*self.model.parameters(), *self.model.buffers()),
        )


def _register() -> str:
    """Make torch's attention known to transformers without its making of masks, which looks at numbers; its name."""
    AttentionInterface.register(_ATTENTION, sdpa_attention_forward)
    AttentionMaskInterface.register(_ATTENTION, _no_mask)
    return _ATTENTION


def _no_mask(*_: Any, **__: Any) -> None:
    """Rows without a mask are plain and causal."""


def _make_fake(model: nn.Module) -> None:
    """Put fake tensors in the place of all parameters and buffers; what was one stays one.

    Adapters cannot be inserted into fake parameters, and there is no autocast for those of the meta device.
    """
    known: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=_DEVICE)
            is_parameter = isinstance(tensor, nn.Parameter)
            known[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return known[id(tensor)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = fake(tensor)  # type: ignore[assignment]
        beside = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
        vars(module).update({name: fake(value) for name, value in beside.items()})


@contextlib.contextmanager
def _guarded(config: PreTrainedConfig) -> Iterator[None]:
    """One line for what cannot be counted, and none of torch's own."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, log.disabled = log.disabled, True
    try:
        yield
    except (RuntimeError, NotImplementedError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise ModelError(
            f"a model of the kind {config.model_type} cannot be counted without its weights: {said}"
        ) from error
    finally:
        log.disabled = disabled
