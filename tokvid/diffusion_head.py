"""A thin diffusion head: continuous latents drawn from what a network says of each token, every token alone.

An MLP with AdaLN-zero (MAR, Li et al. 2024, arXiv 2406.11838; NOVA, Deng et al. 2024, arXiv 2412.14169) that learns a
rectified flow (Liu et al. 2022, arXiv 2209.03003): on the straight line x_t = (1-t) x + t n from a latent x to noise n
its velocity n - x, at times whose logit is normal (Esser et al. 2024, arXiv 2403.03206). At the start it answers
nothing, so that its loss is E|n - x|^2 a channel. It knows neither a language model nor a codec.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokvid.config_checks import at_least, finite, positive
from tokvid.errors import ConfigError, ShapeError

FROM_AND_TO_LATENTS = ("latent_in", "condition_in", "time_in", "latent_out")
"""Parts of the names of what Muon leaves to Adam: maps from and to latents, conditions and times."""
_WAVES = 256
"""Sines and cosines that a time is told in."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What of a head follows neither from its model nor from the data: ``width`` and ``depth`` of the MLP.

    Every token is seen with ``repeats`` independent times and noises a step. The logit of a time is normal with
    ``time_mean`` and ``time_deviation``.
    """

    width: int = 256
    depth: int = 3
    repeats: int = 4
    time_mean: float = 0.0
    time_deviation: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, 1, "width", "depth", "repeats")
        positive(self, "time_deviation")
        finite(self, "time_mean", "time_deviation")


@dataclass(frozen=True, kw_only=True)
class DiffusionHeadConfig(HeadConfig):
    """``mean`` and ``deviation`` are of each of the C channels of latents, ``condition_dim`` numbers of a condition."""

    condition_dim: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "condition_dim")
        if not self.mean or len(self.mean) != len(self.deviation):
            raise ConfigError(
                f"mean and deviation have a number for each channel, got {len(self.mean)} and {len(self.deviation)}"
            )
        if not all(map(math.isfinite, self.mean)) or not all(0 < each < math.inf for each in self.deviation):
            raise ConfigError(
                f"mean must be finite and deviation positive, got {list(self.mean)} and {list(self.deviation)}: a"
                " channel that never changes has nothing to draw"
            )

    @property
    def latent_dim(self) -> int:
        """C."""
        return len(self.mean)


class DiffusionHead(nn.Module):
    """Velocities of noised latents; :meth:`loss` is what it learns by, :mod:`tokvid.flow` draws from it."""

    config_kind: ClassVar[type[DiffusionHeadConfig]] = DiffusionHeadConfig
    """What is saved of it beside its weights."""

    def __init__(self, config: DiffusionHeadConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.latent_in = nn.Linear(config.latent_dim, width)
        self.condition_in = nn.Linear(config.condition_dim, width)
        self.time_in = nn.Sequential(nn.Linear(_WAVES, width), nn.SiLU(), nn.Linear(width, width))
        blocks = [_Block(width) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.shift_scale = nn.Linear(width, 2 * width)
        self.latent_out = nn.Linear(width, config.latent_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for last in (self.shift_scale, self.latent_out, *(block.modulation for block in blocks)):
            nn.init.zeros_(last.weight)

    def forward(self, noised: Tensor, times: Tensor, conditions: Tensor) -> Tensor:
        """Velocities float32 ``[...,N,C]`` of standardised ``noised`` ``[...,N,C]`` at ``times`` ``[...,N]`` in [0, 1]
        (0: the latent, 1: noise), given ``conditions`` ``[N,D]``, all of any floating type."""
        # DeepSpeed may have made the weights bfloat16, and hidden states of a bfloat16 model meet float32 weights.
        dtype = self.latent_in.weight.dtype
        signal = F.silu(self.time_in(_waves(times).to(dtype)) + self.condition_in(conditions.to(dtype)))
        hidden = self.latent_in(noised.to(dtype))
        for block in self.blocks:
            hidden = block(hidden, signal)
        shift, scale = self.shift_scale(signal).chunk(2, dim=-1)
        velocity: Tensor = self.latent_out(_modulated(hidden, shift, scale))
        return velocity.float()

    def standardise(self, latents: Tensor) -> Tensor:
        """Latents ``[...,C]`` with mean 0 and deviation 1 a channel, float32."""
        mean, deviation = self._statistics(latents)
        return (latents.float() - mean) / deviation

    def unstandardise(self, standard: Tensor) -> Tensor:
        """The inverse of :meth:`standardise`."""
        mean, deviation = self._statistics(standard)
        return standard.float() * deviation + mean

    def loss(
        self,
        latents: Tensor,
        conditions: Tensor,
        *,
        mask: Tensor | None = None,
        noise: Tensor | None = None,
        times: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of the velocity over the channels of the tokens in ``mask``, bool ``[N]`` (None: all).

        ``latents`` ``[N,C]`` in the data's units, ``conditions`` ``[N,D]``. ``noise`` ``[R,N,C]`` and ``times``
        ``[R,N]`` are drawn where they are not given, and R is ``repeats`` where neither is. What the mask leaves out
        may hold anything. Raises :class:`ShapeError` for other shapes, for a mask that is not bool and where nothing
        is left.
        """
        return self._errors(latents, conditions, mask, noise, times).mean()

    def draw_times(self, *shape: int, device: torch.device) -> Tensor:
        """Times of that shape in (0, 1) to learn at."""
        return (torch.randn(shape, device=device) * self.config.time_deviation + self.config.time_mean).sigmoid()

    def token_losses(self, latents: Tensor, conditions: Tensor) -> Tensor:
        """The same of each token alone, ``[N]``."""
        return self._errors(latents, conditions, None, None, None).mean((0, 2))

    def _errors(
        self, latents: Tensor, conditions: Tensor, mask: Tensor | None, noise: Tensor | None, times: Tensor | None
    ) -> Tensor:
        """Squared errors ``[R,N,C]`` of the tokens in ``mask``."""
        given = next((each for each in (noise, times) if each is not None), None)
        drawn = (self.config.repeats if given is None else len(given), len(latents))
        _expect("latents", latents, len(latents), self.config.latent_dim)
        _expect("conditions", conditions, len(latents), self.config.condition_dim)
        if noise is None:
            noise = torch.randn(*drawn, self.config.latent_dim, device=latents.device)
        if times is None:
            times = self.draw_times(*drawn, device=latents.device)
        _expect("noise", noise, *drawn, self.config.latent_dim)
        _expect("times", times, *drawn)
        if mask is not None:
            _expect("mask", mask, len(latents))
            if mask.dtype != torch.bool:  # integers would pick tokens by number
                raise ShapeError(f"mask must be bool, got {mask.dtype}")
            latents, conditions, noise, times = latents[mask], conditions[mask], noise[:, mask], times[:, mask]
        if not len(latents):
            raise ShapeError("a loss needs a token: the mask leaves none")
        clean = self.standardise(latents)
        noised = clean + times[..., None] * (noise - clean)
        error: Tensor = self(noised, times, conditions) - (noise - clean)
        return error.square()

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = (
            torch.tensor(each, dtype=torch.float32, device=like.device)
            for each in (self.config.mean, self.config.deviation)
        )
        return mean, deviation


class _Block(nn.Module):
    """Normalise, shift and scale by the condition, two linear maps, and add what a gate lets through."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.inner = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, hidden: Tensor, signal: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(signal).chunk(3, dim=-1)
        added: Tensor = self.inner(_modulated(hidden, shift, scale))
        gated: Tensor = hidden + gate * added
        return gated


def _expect(name: str, tensor: Tensor, *shape: int) -> None:
    if tensor.shape != shape:
        raise ShapeError(f"expected {name} {list(shape)}, got {list(tensor.shape)}")


def _modulated(hidden: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(hidden, hidden.shape[-1:]) * (1 + scale) + shift


def _waves(times: Tensor) -> Tensor:
    """Times ``[...]`` in [0, 1] as sines and cosines ``[...,256]`` of periods from 2 pi / 1000 to 20 pi."""
    rates = 1000.0 * torch.exp(torch.arange(_WAVES // 2, device=times.device) * (-math.log(1e4) / (_WAVES // 2 - 1)))
    angles = times.float()[..., None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
