"""The diffusion head of a refiner, and the network that looks at a frame for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokvid.config_checks import at_least
from tokvid.diffusion_head import FROM_AND_TO_LATENTS, DiffusionHead, DiffusionHeadConfig
from tokvid.errors import ConfigError

ADAM_NAMES = ("seen_in", "near", "shares", *FROM_AND_TO_LATENTS)
"""Parts of the names of what Muon leaves to Adam."""
_LEAST_TIME = 0.1


@dataclass(frozen=True, kw_only=True)
class RefinerHeadConfig(DiffusionHeadConfig):
    """``mean`` is of the patches of frames, ``deviation`` of what decoding loses of them, by which velocities count;
    frames vary by ``spread`` times as much, a number for each channel. A patch is seen by ``looks`` convolutions with
    as many around it, and as it was in ``earlier`` frames."""

    looks: int
    earlier: int
    spread: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "looks")
        at_least(self, 1, "earlier")
        if len(self.spread) != len(self.mean) or not all(0 < each < float("inf") for each in self.spread):
            raise ConfigError(f"spread has a positive number for each of {len(self.mean)} channels, got {self.spread}")


class RefinerHead(DiffusionHead):
    """Velocities of all patches of a frame, of what is seen of it and of earlier frames at the same time of the flow.

    A patch's velocity is what the head says after looking around, and shares, said of each channel, of how the patch
    was otherwise in earlier frames: where nothing moves its flicker goes by averaging, which a small network does not
    learn to say in numbers of its own (weights for pixels rather than pixels: Bako et al. 2017,
    doi 10.1145/3072959.3073708).
    """

    config_kind: ClassVar[type[DiffusionHeadConfig]] = RefinerHeadConfig
    spread: Tensor

    def __init__(self, config: RefinerHeadConfig) -> None:
        super().__init__(config)
        channels, width = config.latent_dim, config.condition_dim
        self.register_buffer("spread", torch.tensor(config.spread), persistent=False)
        self.seen_in = nn.Linear((1 + config.earlier) * channels, width)
        self.looks = nn.Sequential(*(_Look(width) for _ in range(config.looks)))
        self.shares = nn.Linear(width, config.earlier * channels)
        nn.init.zeros_(self.shares.weight)
        nn.init.zeros_(self.shares.bias)

    def velocity(self, now: Tensor, otherwise: Tensor, times: Tensor, *, strength: float = 1.0) -> Tensor:
        """Float32 ``[N,rows,columns,C]``, of frames ``now`` ``[N,rows,columns,C]``, standardised patches at ``times``
        ``[N]``, given how the ``earlier`` frames were ``otherwise`` ``[N,rows,columns,earlier,C]``. The part that
        averages nothing counts ``strength`` times."""
        looking = now / self.spread
        given = self.looks(self.seen_in(torch.cat([looking, otherwise.flatten(3)], dim=3)))
        given = F.layer_norm(given, given.shape[-1:])
        time = times[:, None, None].expand(now.shape[:3])
        own: Tensor = self(looking, time, given)
        shares = self.shares(given).unflatten(3, otherwise.shape[3:])
        # A velocity is a difference of frames by time; frames differ by less the nearer they are to the end.
        averaged: Tensor = (shares * otherwise).sum(3) / time.clamp_min(_LEAST_TIME)[..., None]
        return strength * own - averaged


class _Look(nn.Module):
    """Of each channel the patch and its eight neighbours, then all channels of a patch (a block of ConvNeXt, Liu et al.
    2022, arXiv 2201.03545, of a smaller kernel)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, seen: Tensor) -> Tensor:
        near = self.near(seen.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        mixed: Tensor = seen + self.mix(F.layer_norm(near, near.shape[-1:]))
        return mixed
