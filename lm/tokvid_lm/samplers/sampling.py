"""How ids are drawn from logits: the settings of every mode, and one draw. Knows no model and no loop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tokvid.errors import ModelError
from tokvid_lm.mask_schedule import MaskSchedule
from tokvid_lm.vocabulary import MODES, Mode


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of one mode.

    ``temperature`` > 0 divides the logits (``top_k=1`` is greedy); of a continuous model it scales the noise. ``top_k``
    >= 1 and ``top_p`` in (0, 1] keep the likeliest ids; None keeps all. ``guidance_scale`` as in
    :mod:`tokvid.guidance`; with ``guides_known`` what is compared with knows no cells either, so that guidance is also
    towards what is given.

    The masked modes refine ``steps`` times, frame by frame ``steps`` times a latent frame and ``first_steps`` (0: as
    many) times the first. With ``guidance_ramp`` guidance rises from 1 to its scale along a line with the share of the
    codes that are drawn (MAR, Li et al. 2024, arXiv 2406.11838). A drawn code stays if its log-probability plus
    ``choice_temperature`` times what is left of the way times Gumbel noise is among the highest; 0 takes the likeliest
    first, which copies the frame before.

    Of so many ``candidates`` the clip is kept whose caption the model finds likeliest (:mod:`tokvid_lm.candidates`).
    """

    mode: Mode = "next_token"
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float = 1.0
    guidance_ramp: bool = False
    guides_known: bool = False
    steps: int = 12
    first_steps: int = 0
    choice_temperature: float = 4.5
    candidates: int = 1
    schedule: MaskSchedule = field(default_factory=MaskSchedule)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ModelError(f"mode is one of {', '.join(MODES)}, got {self.mode!r}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ModelError(f"temperature must be above 0, got {self.temperature}; for greedy use top_k=1")
        if self.top_k is not None and self.top_k < 1:
            raise ModelError(f"top_k must be at least 1, got {self.top_k}; to keep all ids leave it out")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ModelError(f"top_p must lie in (0, 1], got {self.top_p}")
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise ModelError(f"guidance_scale must be finite and at least 0, got {self.guidance_scale}; 1.0 is off")
        if self.guidance_ramp and self.mode == "next_token":
            raise ModelError(
                "guidance_ramp is for the masked modes, maskgit and frame, and this is next_token: leave it out"
            )
        if self.steps < 1 or self.first_steps < 0:
            raise ModelError(f"steps must be at least 1, got {self.steps} (first_steps {self.first_steps})")
        if not (math.isfinite(self.choice_temperature) and self.choice_temperature >= 0):
            raise ModelError(f"choice_temperature must be at least 0, got {self.choice_temperature}")
        if self.candidates < 1:
            raise ModelError(f"candidates must be at least 1, got {self.candidates}")

    def override(
        self,
        *,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        steps: int | None = None,
        choice_temperature: float | None = None,
        candidates: int | None = None,
        seed: int | None = None,
    ) -> Sampling:
        """These settings with the given ones in their place. None leaves one; ``top_k`` 0 and ``top_p`` 1 keep all.

        Raises :class:`ModelError` for settings of the masked modes in another mode.
        """
        if self.mode == "next_token" and not (steps is None and choice_temperature is None):
            raise ModelError(
                "steps and choice_temperature are for the masked modes, maskgit and frame, and this is next_token:"
                " leave them out, or choose a mode"
            )
        given = {
            "guidance_scale": guidance_scale,
            "temperature": temperature,
            "steps": steps,
            "choice_temperature": choice_temperature,
            "candidates": candidates,
            "seed": seed,
        }
        changed = {name: value for name, value in given.items() if value is not None}
        if steps is not None:
            changed["first_steps"] = 0
        return replace(
            self,
            top_k=self.top_k if top_k is None else top_k or None,
            top_p=self.top_p if top_p is None else None if top_p == 1.0 else top_p,
            **changed,  # type: ignore[arg-type]
        )

    def choice_noise(self, progress: float) -> float:
        """The scale of the noise in what stays, at ``progress`` in [0, 1]: falling along one line, to nothing."""
        return self.choice_temperature * (1.0 - progress)

    def guidance_at(self, share: float) -> float:
        """The guidance of a step of the masked modes after which ``share`` of its cells are drawn, in (0, 1]."""
        return 1.0 + (self.guidance_scale - 1.0) * share if self.guidance_ramp else self.guidance_scale

    @property
    def guided(self) -> bool:
        """Whether unconditional rows are needed."""
        return self.guidance_scale != 1.0


def draw(logits: Tensor, noise: Tensor, sampling: Sampling) -> Tensor:
    """Draw a column, int64 ``[rows]``, from logits ``[rows, columns]`` with noise ``[rows]`` in [0, 1).

    The noise goes through the inverse of the cumulative distribution: one number a row, whatever the number of
    columns. Columns at minus infinity are never drawn.
    """
    if sampling.top_k == 1:
        return logits.argmax(1)
    # Subtracted first, so that a tiny temperature cannot overflow.
    scaled = (logits.float() - logits.float().amax(1, keepdim=True)) / sampling.temperature
    columns: Tensor | None = None
    if sampling.top_k is not None or sampling.top_p is not None:
        kept = logits.shape[1] if sampling.top_k is None else min(sampling.top_k, logits.shape[1])
        scaled, columns = scaled.topk(kept, dim=1)
    probabilities = scaled.softmax(1)
    if sampling.top_p is not None:
        before = probabilities.cumsum(1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
        probabilities[:, 0] = scaled.softmax(1)[:, 0]  # the likeliest stays, however small top_p
    # float32 sums drift over a large vocabulary; MPS has no float64.
    exact = probabilities if probabilities.device.type == "mps" else probabilities.double()
    cumulative = exact.cumsum(1)
    target = noise.to(cumulative).unsqueeze(1) * cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, target, right=True).clamp(max=cumulative.shape[1] - 1)
    return (choice if columns is None else columns.gather(1, choice)).squeeze(1)
