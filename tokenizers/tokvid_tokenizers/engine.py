"""One network's gradients, clipping and steps: in one process, in several by torch's DDP, or by DeepSpeed.

The loop computes through ``forward`` what it takes gradients of, and through ``network`` everything else. A codec with
an adversary has two engines. Nothing here knows what a loss is made of.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from tokvid.across_processes import rank_and_count, sum_over_processes
from tokvid.deepspeed_config import check_agreement, import_deepspeed, zero_stage
from tokvid.errors import ConfigError
from tokvid.optimizer import load_optimizer, set_learning_rate
from tokvid_tokenizers.training_config import CodecTrainingConfig

_OF_THE_RECIPE = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "bf16")
"""What may stand in DeepSpeed's settings as "auto": the recipe says it, and the loop does it."""


class Engine(ABC):
    """``forward`` computes what ``network`` does, and lets gradients be averaged over processes."""

    forward: nn.Module

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.network = network
        self.optimizer = optimizer

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """The gradients of ``loss``, a mean over this process's part of a batch; once a step."""

    @abstractmethod
    def step(self, share: float) -> Tensor:
        """One step at ``share`` of the learning rate with clipped gradients, which are gone then; their norm before."""

    def state(self) -> dict[str, Any]:
        """The ``state_dict`` of the optimizer, whole, for a checkpoint; all processes must ask together."""
        return self.optimizer.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` gave, in as many processes as it may have been."""
        load_optimizer(self.optimizer, state)

    @abstractmethod
    def weights_changed(self) -> None:
        """Must be called when something else than :meth:`step` has changed the weights."""


class TorchEngine(Engine):
    """torch alone, in as many processes as there are."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, *, clip: float | None) -> None:
        super().__init__(network, optimizer)
        self._clip = clip
        _, processes = rank_and_count()
        self.forward = network if processes == 1 else _data_parallel(network)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, share: float) -> Tensor:
        norm = clip_grad_norm_(self.network.parameters(), self._clip or math.inf)
        set_learning_rate(self.optimizer, share)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def weights_changed(self) -> None:
        """The optimizer has no weights of its own."""


def _data_parallel(network: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the newest torch has another name for it, which others lack
        # Codebooks that follow the latents are buffers, and agree already.
        return DistributedDataParallel(network, broadcast_buffers=False)


class DeepSpeedEngine(Engine):
    """DeepSpeed, ZeRO 0 to 2. From 1 on each process keeps its part of the optimizer, and of the weights it moves."""

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, *, clip: float | None, settings: Mapping[str, Any]
    ) -> None:
        super().__init__(network, optimizer)
        self._parameters = [
            [parameter for parameter in group["params"] if parameter.requires_grad] for group in optimizer.param_groups
        ]
        self._stage = zero_stage(settings)
        self._clip = clip
        config = {name: value for name, value in settings.items() if name not in _OF_THE_RECIPE}
        # Of batches DeepSpeed only says how many clips a second they are. Below stage 1 it would clip, but not say how
        # long the gradient was.
        config |= {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": (clip or 0.0) if self._stage else 0.0}
        # It takes parameters apart as plain numbers in a row: channels-last weights are not that.
        network.to(memory_format=torch.contiguous_format)
        self._engine, *_ = import_deepspeed().initialize(model=network, optimizer=optimizer, config=config)
        # Not the engine's forward, which switches the autocast of the loop off.
        self.forward = network

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self, share: float) -> Tensor:
        norm = None if self._stage else clip_grad_norm_(self.network.parameters(), self._clip or math.inf)
        set_learning_rate(self.optimizer, share)
        self._engine.step()
        return torch.as_tensor(self._engine.get_global_grad_norm() or 0.0) if norm is None else norm

    def state(self) -> dict[str, Any]:
        if not self._stage:
            return super().state()
        whole: dict[int, dict[str, Tensor]] = {}
        groups: list[dict[str, Any]] = []
        for group, parameters in zip(self.optimizer.param_groups, self._parameters, strict=True):
            (part,) = group["params"]  # all parameters of the group in a row, of which this process has a piece
            numbers = list(range(len(whole), len(whole) + len(parameters)))
            groups.append({**group, "params": numbers})
            for number, parameter in zip(numbers, parameters, strict=True):
                kept = self.optimizer.state[part].items()
                whole[number] = {name: _put_together(parameter, value) for name, value in kept}
        return {"state": {number: kept for number, kept in whole.items() if kept}, "param_groups": groups}

    def load(self, state: dict[str, Any]) -> None:
        if not self._stage:
            super().load(state)
            return
        for group, parameters, saved in zip(
            self.optimizer.param_groups, self._parameters, state["param_groups"], strict=True
        ):
            (part,) = group["params"]
            group.update({name: value for name, value in saved.items() if name != "params"})
            mine: dict[str, Tensor] = {}
            for number, parameter in zip(saved["params"], parameters, strict=True):
                for name, value in state["state"].get(number, {}).items():
                    if not value.dim():  # the number of steps
                        mine[name] = value.clone()
                        continue
                    whole = mine.setdefault(name, torch.zeros_like(part))  # of a process that has only filling, too
                    for place, piece in _pieces(parameter):
                        whole[piece] = value.flatten()[place].to(part)
            self.optimizer.state[part] = mine

    def weights_changed(self) -> None:
        if self._stage:
            self._engine.optimizer.refresh_fp32_params()


def build_engine(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    clip: float | None = None,
    deepspeed: Mapping[str, Any] | None = None,
) -> Engine:
    """The engine of one network; its gradients are shortened to the length ``clip``, with None not.

    ``deepspeed`` are the settings of its JSON, that :func:`check_settings` has seen.
    """
    if deepspeed is None:
        return TorchEngine(network, optimizer, clip=clip)
    return DeepSpeedEngine(network, optimizer, clip=clip, settings=deepspeed)


def check_settings(settings: Mapping[str, Any], training: CodecTrainingConfig) -> None:
    """Raise :class:`ConfigError` where DeepSpeed's ``settings`` would train otherwise than the recipe says."""
    _, processes = rank_and_count()
    recipe = {
        "gradient_clipping": training.gradient_clip,
        "gradient_accumulation_steps": 1,
        "train_batch_size": training.batch_size,
        "train_micro_batch_size_per_gpu": training.batch_size // processes,
    }
    check_agreement(settings, recipe)
    if settings.get("bf16", {}).get("enabled", "auto") not in ("auto", False):
        raise ConfigError(
            "training.deepspeed: bf16 would also round the weights; leave it out and set training.precision to bf16"
        )
    if zero_stage(settings) == 3:
        raise ConfigError(
            "training.deepspeed: ZeRO 3 takes the decoder's last layer apart, at whose whole weight the adversary's"
            " share of the loss is measured, and a codec is small: use stage 0, 1 or 2"
        )
    adversary = training.adversarial
    kinds = [training.optimizer.kind, *([adversary.optimizer.kind] if adversary else [])]
    if zero_stage(settings) and "muon" in kinds:
        raise ConfigError(
            "ZeRO 1 and 2 cut parameters into pieces and Muon needs whole matrices: use adamw for the codec and its"
            " adversary, or ZeRO stage 0"
        )


def _pieces(parameter: Tensor) -> list[tuple[slice, slice]]:
    """Which of a parameter's numbers, in a row, this process moves, and where they are in its part of all; or none."""
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return []
    addresses = (mapping.lp_fragment_address, mapping.hp_fragment_address)
    place, piece = (slice(address.start, address.start + address.numel) for address in addresses)
    return [(place, piece)]


def _put_together(parameter: Tensor, value: Tensor) -> Tensor:
    """What belongs to ``parameter`` of ``value``, of which each process has its part; a number is that of all."""
    if not value.dim():
        return value.clone()
    whole = torch.zeros(parameter.numel(), dtype=value.dtype, device=parameter.device)
    for place, piece in _pieces(parameter):
        whole[place] = value[piece].to(whole)
    return sum_over_processes(whole).reshape(parameter.shape)
