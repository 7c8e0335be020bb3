"""How far a reconstruction is from its clip, pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokvid.config_checks import at_least, finite
from tokvid.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReconstructionLossConfig:
    """Weights of the squared and the absolute error, both over frames in [-1, 1]."""

    l2: float = 1.0
    l1: float = 0.0

    def __post_init__(self) -> None:
        at_least(self, 0, "l1", "l2")
        finite(self, "l1", "l2")
        if self.l1 + self.l2 == 0:
            raise ConfigError("l1 and l2 must not both be zero: there would be nothing to learn from")


def reconstruction_loss(config: ReconstructionLossConfig, reconstruction: Tensor, frames: Tensor) -> dict[str, Tensor]:
    """Weighted parts of the loss, each a scalar: their sum is what is minimised. Both tensors ``[B,3,T,H,W]``."""
    error = reconstruction.float() - frames
    parts: dict[str, Tensor] = {}
    if config.l2:
        parts["l2"] = config.l2 * error.square().mean()
    if config.l1:
        parts["l1"] = config.l1 * error.abs().mean()
    return parts
