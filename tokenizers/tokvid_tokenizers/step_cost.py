"""What a training step of a codec costs before it is built: arithmetic, and memory between its passes.

The networks, the losses and the discriminator run on torch's fake tensors, forward and backward, and are counted while
they do, so that the figures are those of the code. The quantizer is left out, of whose numbers its path depends: it
takes some per cent of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tokvid.kept_memory import kept_bytes
from tokvid.optimizer import OptimizerConfig, build_optimizer
from tokvid_tokenizers import adversary
from tokvid_tokenizers.discriminator import Discriminator
from tokvid_tokenizers.layers.stack import recompute_blocks
from tokvid_tokenizers.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss, r1_loss
from tokvid_tokenizers.losses.reconstruction import (
    perceptual_distance,
    perceptual_loss,
    reconstruction_loss,
)
from tokvid_tokenizers.networks import build_decoder, build_encoder
from tokvid_tokenizers.quantizers import build_quantizer
from tokvid_tokenizers.training import ADAM_NAMES
from tokvid_tokenizers.training_config import CodecRecipe

_DEVICE = "cpu"  # of the fake tensors: nothing is computed


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A batch of one process: so many ``clips``, of ``num_frames`` frames of ``height`` by ``width`` pixels."""

    clips: int
    num_frames: int
    height: int
    width: int


class FlopCounter(TorchDispatchMode):
    """Counts a multiplication and an addition as two in ``total``, by torch's formulas for each operation.

    ``FlopCounterMode`` follows modules, too, by hooks that gradients of gradients cannot pass.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


class EmptyTraining:
    """The networks of a codec recipe without memory; parameters in all, and those that learn."""

    def __init__(self, recipe: CodecRecipe) -> None:
        self._config = recipe.training
        # The network that pictures are compared by is real, and shared: loaded in this mode it would have no weights.
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        if recipe.training.loss.perceptual:
            perceptual_distance(recipe.training.loss, torch.device(_DEVICE))
        quantizer = build_quantizer(recipe.codec.quantizer)
        self._dim = quantizer.dim
        adversarial = recipe.training.adversarial
        with self._mode, torch.device(_DEVICE):
            self._encoder = build_encoder(recipe.codec, quantizer.encoded_dim)
            self._decoder = build_decoder(recipe.codec, quantizer.dim)
            self._adversary = Discriminator(adversarial.discriminator) if adversarial else None
        if recipe.training.trains == "decoder":
            self._encoder.requires_grad_(False)
        recompute_blocks(self._encoder, recipe.training.checkpoint_blocks)
        recompute_blocks(self._decoder, recipe.training.checkpoint_blocks)
        own = _count(quantizer)
        self.codec = _count(self._encoder) + _count(self._decoder) + own
        self.discriminator = 0 if self._adversary is None else _count(self._adversary)
        frozen = recipe.training.trains == "decoder"
        self.trained = _count(self._decoder) + (0 if frozen else _count(self._encoder) + own)

    @property
    def moments(self) -> int:
        """Numbers that the optimizers keep: Adam two of each trained parameter, Muon one."""
        config = self._config
        codec = nn.ModuleDict({"encoder": self._encoder, "decoder": self._decoder})
        count = _moments(codec, config.optimizer, ADAM_NAMES)
        if self._adversary is not None and config.adversarial is not None:
            count += _moments(self._adversary, config.adversarial.optimizer, adversary.ADAM_NAMES)
        return count

    def flops(self, shape: Shape, *, learns: bool, listens: bool, bf16: bool) -> float:
        """Operations of a step, a multiplication and an addition as two; does the adversary learn, is it heard?"""
        # Of the ways to compute attention, the one that the counter knows on every device.
        with self._ready(bf16), sdpa_kernel(SDPBackend.MATH), FlopCounter() as counter:
            frames = self._frames(shape)
            reconstruction, loss = self._loss(frames, listens=listens)
            loss.backward()
            self._forget()
            if learns:
                self._adversary_step(frames, reconstruction.detach())
        total = float(counter.total)
        adversarial = self._config.adversarial
        if learns and adversarial is not None and adversarial.r1:
            with self._ready(bf16), sdpa_kernel(SDPBackend.MATH), FlopCounter() as counter:
                self._smooth_step(frames)
            total += counter.total / adversarial.r1_every
        return total

    def kept(self, shape: Shape, *, listens: bool, bf16: bool) -> int:
        """Bytes between the forward and the backward pass of the codec, its clips included.

        With ``checkpoint_blocks``, without what a block keeps while it is computed again.
        """
        with self._ready(bf16):
            frames = self._frames(shape)
            own = (tensor for network in self._networks() for tensor in (*network.parameters(), *network.buffers()))
            return kept_bytes(lambda: self._loss(frames, listens=listens), inputs=[frames], own=own)

    def _frames(self, shape: Shape) -> Tensor:
        return torch.zeros(shape.clips, 3, shape.num_frames, shape.height, shape.width, device=_DEVICE)

    def _loss(self, frames: Tensor, *, listens: bool) -> tuple[Tensor, Tensor]:
        """Of the codec: its reconstruction of ``frames``, and what it learns from."""
        latents = self._encoder(frames)[:, : self._dim]
        reconstruction = self._decoder(latents)[:, :, : frames.shape[2]]
        config = self._config.loss
        with torch.autocast(_DEVICE, enabled=False):
            pixels = replace(config, l2=config.l2 or 1.0, perceptual=0.0, lpips=None)
            loss = torch.stack(list(reconstruction_loss(pixels, reconstruction, frames).values())).sum()
            if config.perceptual:
                some = slice(config.perceptual_frames or None)  # as many as a training draws
                loss = loss + perceptual_loss(config, reconstruction[:, :, some], frames[:, :, some])
        return reconstruction, loss + self._adversarial(reconstruction, loss) if listens else loss

    def _adversarial(self, reconstruction: Tensor, others: Tensor) -> Tensor:
        config = self._config.adversarial
        assert config is not None and self._adversary is not None
        self._adversary.requires_grad_(False)
        loss = generator_loss(config.kind, self._adversary(reconstruction).float())
        self._adversary.requires_grad_(True)
        return loss * adaptive_weight(others, loss, self._decoder.last_layer.weight) if config.adaptive else loss

    def _adversary_step(self, frames: Tensor, reconstruction: Tensor) -> None:
        config = self._config.adversarial
        assert config is not None and self._adversary is not None
        real, fake = self._adversary(torch.cat([frames, reconstruction.to(frames)])).float().chunk(2)
        discriminator_loss(config.kind, real, fake).backward()
        self._forget()

    def _smooth_step(self, frames: Tensor) -> None:
        assert self._adversary is not None
        smooth = frames.detach().clone().requires_grad_()
        r1_loss(self._adversary(smooth).float(), smooth).backward()
        self._forget()

    def _forget(self) -> None:
        for network in self._networks():
            network.zero_grad()

    def _networks(self) -> Iterator[nn.Module]:
        yield self._encoder
        yield self._decoder
        if self._adversary is not None:
            yield self._adversary

    @contextmanager
    def _ready(self, bf16: bool) -> Iterator[None]:
        with self._mode, torch.autocast(_DEVICE, torch.bfloat16, enabled=bf16):
            yield


def _moments(network: nn.Module, config: OptimizerConfig, adam_names: Iterable[str]) -> int:
    groups = build_optimizer(config, network, adam_names=adam_names).param_groups
    counts = [(sum(parameter.numel() for parameter in group["params"]), group.get("rule")) for group in groups]
    return sum(count if rule == "muon" else 2 * count for count, rule in counts)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
