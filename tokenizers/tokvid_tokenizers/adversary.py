"""The adversary of one training run: a discriminator, its optimizer, and the averages of its verdicts.

It is a side of the loop with a state of its own; the codec's side asks it for a loss, then lets it learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokvid.across_processes import mean_over_processes, means_over_processes
from tokvid.optimizer import build_optimizer
from tokvid_tokenizers.discriminator import Discriminator
from tokvid_tokenizers.engine import build_engine
from tokvid_tokenizers.losses.adversarial import (
    AdversarialConfig,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    lecam_loss,
    r1_loss,
)

# The first layer touches pixels, the head makes verdicts: neither maps features to features.
ADAM_NAMES = ("layers.0.", "head")


class Adversary:
    """What judges reconstructions while a codec trains, with DeepSpeed where there are settings for it."""

    def __init__(
        self, config: AdversarialConfig, device: torch.device, deepspeed: Mapping[str, Any] | None = None
    ) -> None:
        self.config = config
        self.network = Discriminator(config.discriminator).to(device)
        optimizer = build_optimizer(config.optimizer, self.network, adam_names=ADAM_NAMES)
        self.engine = build_engine(self.network, optimizer, deepspeed=deepspeed)
        self.real_average = torch.zeros((), device=device)
        self.fake_average = torch.zeros((), device=device)

    def codec_loss(self, step: int, reconstruction: Tensor, others: Tensor, layer: Tensor) -> Tensor | None:
        """The weighted loss of ``reconstruction`` ``[B,3,T,H,W]`` at ``step`` (from 0); None while nobody listens.

        ``others`` is the sum of the codec's other losses and ``layer`` the weights of its last layer, for the
        adaptation.
        """
        weight = self.config.weight_at(step)
        if not weight:
            return None
        self.network.requires_grad_(False)
        loss = generator_loss(self.config.kind, self.network(reconstruction).float())
        self.network.requires_grad_(True)
        return weight * loss * (adaptive_weight(others, loss, layer) if self.config.adaptive else 1.0)

    def learn(self, step: int, frames: Tensor, reconstruction: Tensor, share: float) -> dict[str, Tensor]:
        """One step of the discriminator, at ``share`` of its learning rate; its figures, none before it begins."""
        config = self.config
        if step < config.start_step:
            return {}
        # In one forward, so that both sides meet the same network.
        judged = torch.cat([frames, reconstruction.detach().to(frames)])
        real, fake = self.engine.forward(judged).float().chunk(2)
        loss = discriminator_loss(config.kind, real, fake)
        figures = {"discriminator": loss.detach()}
        figures |= {name: mean_over_processes(side.detach().mean()) for name, side in (("real", real), ("fake", fake))}
        if config.lecam:
            loss = loss + config.lecam * lecam_loss(real, fake, self.real_average, self.fake_average)
            self.real_average.lerp_(figures["real"], 1 - config.lecam_decay)
            self.fake_average.lerp_(figures["fake"], 1 - config.lecam_decay)
        if config.r1 and step % config.r1_every == 0:
            smooth = frames.detach().clone().requires_grad_()
            penalty = r1_loss(self.network(smooth).float(), smooth)
            figures["r1"] = penalty.detach()
            loss = loss + config.r1 * config.r1_every * penalty
        self.engine.backward(loss)
        self.engine.step(share)
        return means_over_processes(figures)

    def tensors(self) -> dict[str, Tensor]:
        """The weights and averages, by name, for a checkpoint."""
        averages = {"real_average": self.real_average, "fake_average": self.fake_average}
        return {**{f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}, **averages}

    def load(self, tensors: dict[str, Tensor], optimizer: dict[str, Any]) -> None:
        """Take up what :meth:`tensors` and the engine's state hold."""
        self.network.load_state_dict({n.removeprefix("network."): t for n, t in tensors.items() if "network." in n})
        self.real_average.copy_(tensors["real_average"])
        self.fake_average.copy_(tensors["fake_average"])
        self.engine.load(optimizer)
        self.engine.weights_changed()
