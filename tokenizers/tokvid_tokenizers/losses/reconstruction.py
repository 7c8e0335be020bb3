"""How far a reconstruction is from its clip: pixel by pixel, and as a network sees it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from tokvid.config_checks import at_least, finite
from tokvid.errors import ConfigError
from tokvid.metrics.efficientnet_lite import load_efficientnet_lite
from tokvid.metrics.perceptual import LPIPS, PictureDistance, efflite_distance, video_distance


@dataclass(frozen=True, kw_only=True)
class ReconstructionLossConfig:
    """Weights of the squared and the absolute error, over frames in [-1, 1], and of the perceptual distance.

    The distance is ``efflite_distance``, for which the extra ``metrics`` installs the network; with ``lpips``, the
    files of the weights of VGG-16 and of LPIPS's linear layers, it is LPIPS. It is taken of ``perceptual_frames``
    frames of each clip, drawn anew at every step; 0 takes all.
    """

    l2: float = 1.0
    l1: float = 0.0
    perceptual: float = 0.0
    perceptual_frames: int = 2
    lpips: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        at_least(self, 0, "l1", "l2", "perceptual", "perceptual_frames")
        finite(self, "l1", "l2", "perceptual")
        if self.l1 + self.l2 + self.perceptual == 0:
            raise ConfigError("l1, l2 and perceptual must not all be zero: there would be nothing to learn from")
        if self.lpips and not self.perceptual:
            raise ConfigError("lpips names weights that nobody uses: give perceptual, the weight of the distance")


def reconstruction_loss(config: ReconstructionLossConfig, reconstruction: Tensor, frames: Tensor) -> dict[str, Tensor]:
    """Weighted parts of the loss, each a scalar: their sum is what is minimised. Both tensors ``[B,3,T,H,W]``."""
    error = reconstruction.float() - frames
    parts: dict[str, Tensor] = {}
    if config.l2:
        parts["l2"] = config.l2 * error.square().mean()
    if config.l1:
        parts["l1"] = config.l1 * error.abs().mean()
    if config.perceptual:
        some = _some_frames(frames.shape[2], config.perceptual_frames)
        parts["perceptual"] = perceptual_loss(config, reconstruction[:, :, some], frames[:, :, some])
    return parts


def perceptual_loss(config: ReconstructionLossConfig, reconstruction: Tensor, frames: Tensor) -> Tensor:
    """The weighted perceptual distance, a scalar, of all frames of both ``[B,3,T,H,W]``."""
    distance = perceptual_distance(config, frames.device)
    return config.perceptual * video_distance(distance, reconstruction.float(), frames).mean()


def perceptual_distance(config: ReconstructionLossConfig, device: torch.device) -> PictureDistance:
    """What the perceptual part compares by; its network is loaded once for all."""
    if config.lpips is not None:
        return _lpips(*config.lpips).to(device).distance
    load_efficientnet_lite()
    return efflite_distance


_lpips = functools.cache(LPIPS)


def _some_frames(count: int, wanted: int) -> list[int]:
    chosen: list[int] = torch.randperm(count)[: wanted or count].sort().values.tolist()
    return chosen
