"""The diffusion head of a refiner, and the network that looks at a frame for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from tokvid.config_checks import at_least
from tokvid.diffusion_head import FROM_AND_TO_LATENTS, DiffusionHead, DiffusionHeadConfig

ADAM_NAMES = ("seen_in", "near", *FROM_AND_TO_LATENTS)
"""Parts of the names of what Muon leaves to Adam."""


@dataclass(frozen=True, kw_only=True)
class RefinerHeadConfig(DiffusionHeadConfig):
    """At the place of a patch ``seen_dim`` numbers are seen; by ``looks`` convolutions as many patches around it."""

    seen_dim: int
    looks: int

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "seen_dim")
        at_least(self, 0, "looks")


class RefinerHead(DiffusionHead):
    """Draws patches of frames; :meth:`conditions` makes of all that is seen of a frame what each is drawn after."""

    config_kind: ClassVar[type[DiffusionHeadConfig]] = RefinerHeadConfig

    def __init__(self, config: RefinerHeadConfig) -> None:
        super().__init__(config)
        self.seen_in = nn.Linear(config.seen_dim, config.condition_dim)
        self.looks = nn.Sequential(*(_Look(config.condition_dim) for _ in range(config.looks)))

    def conditions(self, seen: Tensor) -> Tensor:
        """Of frames ``[N,rows,columns,S]`` of patches the conditions ``[N,rows,columns,D]``."""
        looked: Tensor = self.looks(self.seen_in(seen))
        return F.layer_norm(looked, looked.shape[-1:])


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
