"""The losses of a codec's adversary: what the discriminator and the decoder minimise, and what keeps them apart.

Logits are positive for real. It knows numbers alone, no network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokvid.across_processes import mean_over_processes
from tokvid.config_checks import at_least, finite, is_average
from tokvid.optimizer import AdamWConfig, OptimizerConfig
from tokvid_tokenizers.discriminator import DiscriminatorConfig

AdversarialKind = Literal["hinge", "non_saturating"]
_LARGEST_WEIGHT = 1e4


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """How a discriminator takes part in training.

    It begins to learn at ``start_step``; the codec begins to listen ``warmup_steps`` later, with a weight that rises
    to ``weight`` over ``ramp_steps``: a discriminator that knows nothing yet, at its full weight, is what makes losses
    jump. With ``adaptive`` the weight is multiplied by the ratio of the gradients of the other losses and of this one
    at the decoder's last layer (VQGAN, Esser et al. 2020, arXiv 2012.09841). ``lecam`` pulls the verdicts to their
    moving averages (Tseng et al. 2021, arXiv 2104.03310), ``r1`` keeps them smooth at real clips (Mescheder et al.
    2018, arXiv 1801.04406), every ``r1_every`` steps, times that number.
    """

    weight: float = 0.1
    kind: AdversarialKind = "hinge"
    adaptive: bool = True
    start_step: int = 0
    warmup_steps: int = 100
    ramp_steps: int = 500
    lecam: float = 0.001
    lecam_decay: float = 0.99
    r1: float = 0.0
    r1_every: int = 16
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)

    def __post_init__(self) -> None:
        at_least(self, 0, "weight", "start_step", "warmup_steps", "ramp_steps", "lecam", "r1")
        at_least(self, 1, "r1_every")
        finite(self, "weight", "lecam", "r1")
        is_average(self, "lecam_decay")

    def weight_at(self, step: int) -> float:
        """The weight of the codec's adversarial loss at ``step`` (from 0), before it is adapted."""
        since = step - self.start_step - self.warmup_steps
        return self.weight * min(1.0, max(0.0, (since + 1) / max(1, self.ramp_steps)))


def discriminator_loss(kind: AdversarialKind, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises, of logits of real and of reconstructed patches."""
    if kind == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def generator_loss(kind: AdversarialKind, fake: Tensor) -> Tensor:
    """What the codec minimises, of logits of reconstructed patches."""
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def lecam_loss(real: Tensor, fake: Tensor, real_average: Tensor, fake_average: Tensor) -> Tensor:
    """Squared distance of each side's logits, where they overshoot, from the other side's moving average."""
    return F.relu(real - fake_average).square().mean() + F.relu(real_average - fake).square().mean()


def r1_loss(real: Tensor, frames: Tensor) -> Tensor:
    """Half the squared gradient of the logits of real ``frames`` ``[B,3,T,H,W]``, a clip."""
    (gradient,) = torch.autograd.grad(real.sum(), frames, create_graph=True)
    return gradient.square().sum((1, 2, 3, 4)).mean() / 2


def adaptive_weight(others: Tensor, adversarial: Tensor, layer: Tensor) -> Tensor:
    """The ratio of the lengths of two losses' gradients at the weights ``layer``, a constant in [0, 1e4]."""
    (wanted,) = torch.autograd.grad(others, layer, retain_graph=True)
    (given,) = torch.autograd.grad(adversarial, layer, retain_graph=True)
    ratio: Tensor = mean_over_processes(wanted).norm() / (mean_over_processes(given).norm() + 1e-4)
    return ratio.clamp(0, _LARGEST_WEIGHT).detach()
