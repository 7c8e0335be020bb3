"""Latents drawn from a diffusion head: its flow followed from noise at time 1 to a latent at time 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tokvid.config_checks import at_least, finite
from tokvid.diffusion_head import DiffusionHead
from tokvid.errors import ModelError, ShapeError, did_you_mean
from tokvid.guidance import guide
from tokvid.noise import uniform

Solver = Literal["euler", "heun"]
Velocity = Callable[[Tensor, Tensor], Tensor]
"""Of points ``[N,C]`` at times ``[N]``."""


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """How latents are drawn: in ``steps`` of a ``solver`` from noise scaled by ``temperature``."""

    steps: int = 12
    solver: Solver = "heun"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, 1, "steps")
        at_least(self, 0, "temperature")
        finite(self, "temperature")


# Parts the noise that latents start from from all other noise of the same seed.
_STREAM = 0xF10A


def starting_noise(seed: int, samples: Tensor, positions: Tensor, channels: int, *, step: int = 0) -> Tensor:
    """Standard normal float32 ``[N,channels]``, a function of (seed, sample, position, step) and the channel alone.

    ``samples`` and ``positions`` int64 ``[N]``, on the CPU. A flow is followed without more noise: its ``step`` is 0.
    """
    counters = (torch.tensor(_STREAM), samples[:, None], positions[:, None], torch.tensor(step), torch.arange(channels))
    # Between the multiples of 2^-23 that it gives: 0 has no place under the normal curve.
    between = uniform(seed, *counters).double() + 2.0**-24
    normal: Tensor = torch.special.ndtri(between)
    return normal.float()


def follow(velocity: Velocity, noise: Tensor, *, steps: int, solver: Solver = "euler") -> Tensor:
    """Where the flow takes ``noise`` ``[N,C]`` from time 1 to 0 in ``steps`` equal steps; Heun looks twice a step."""
    if steps < 1:
        raise ModelError(f"steps must be at least 1, got {steps}")
    if solver not in get_args(Solver):
        raise ModelError(f"unknown solver {solver!r}: {did_you_mean(str(solver), get_args(Solver))}")
    points = noise
    for step in range(steps):
        start, end = (torch.full((len(noise),), 1 - place / steps, device=noise.device) for place in (step, step + 1))
        slope = velocity(points, start)
        if solver == "heun":
            slope = (slope + velocity(points - slope / steps, end)) / 2
        points = points - slope / steps
    return points


@torch.no_grad()
def draw_latents(
    head: DiffusionHead,
    conditions: Tensor,
    noise: Tensor,
    *,
    steps: int = 25,
    solver: Solver = "euler",
    temperature: float = 1.0,
    guidance_scale: float = 1.0,
    null_conditions: Tensor | None = None,
) -> Tensor:
    """Latents float32 ``[N,C]`` in the data's units, given ``conditions`` ``[N,D]``, from normal ``noise`` ``[N,C]``.

    ``temperature`` scales the noise. A ``guidance_scale`` g is away from ``null_conditions`` ``[N,D]``, on velocities
    as :mod:`tokvid.guidance` is on logits, and level along the way: who draws sets of tokens one after the other gives
    each set its g.
    """
    if conditions.ndim != 2 or conditions.shape[1] != head.config.condition_dim:
        raise ShapeError(f"expected conditions [N,{head.config.condition_dim}], got {list(conditions.shape)}")
    if noise.shape != (len(conditions), head.config.latent_dim):
        raise ShapeError(
            f"{len(conditions)} conditions need noise [{len(conditions)},{head.config.latent_dim}], got"
            f" {list(noise.shape)}"
        )
    if not 0 <= temperature < float("inf"):
        raise ModelError(f"temperature must be at least 0, got {temperature}")
    if not math.isfinite(guidance_scale):
        raise ModelError(f"guidance_scale must be finite, got {guidance_scale}")
    if guidance_scale != 1.0 and null_conditions is None:
        raise ModelError("guidance_scale compares with null_conditions: give them, or leave it at 1.0")
    if null_conditions is not None and null_conditions.shape != conditions.shape:
        raise ShapeError(f"expected null_conditions {list(conditions.shape)}, got {list(null_conditions.shape)}")

    def velocity(points: Tensor, times: Tensor) -> Tensor:
        conditional: Tensor = head(points, times, conditions)
        if guidance_scale == 1.0:
            return conditional
        return guide(conditional, head(points, times, null_conditions), guidance_scale)

    return head.unstandardise(follow(velocity, noise * temperature, steps=steps, solver=solver))
