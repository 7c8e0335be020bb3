"""How much what a quantizer adds to the loss counts, step by step. It knows numbers alone."""

from __future__ import annotations

from dataclasses import dataclass

from tokvid.config_checks import at_least, finite
from tokvid.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class QuantizerLossConfig:
    """A weight that goes from ``start`` at the first step to ``end`` at step ``steps``, linearly, and stays there.

    It multiplies all that the quantizer itself weighs (its commitment, entropy, divergence). An entropy that begins
    above its weight spreads a codebook before the pixels decide; a divergence or a commitment that begins at 0 leaves
    the latents free until there is something to keep.
    """

    start: float = 1.0
    end: float = 1.0
    steps: int = 0

    def __post_init__(self) -> None:
        at_least(self, 0, "start", "end", "steps")
        finite(self, "start", "end")
        if self.start != self.end and not self.steps:
            raise ConfigError(
                f"start is {self.start:g} and end {self.end:g}: say in how many steps, or make them equal"
            )

    def weight_at(self, step: int) -> float:
        """The weight at ``step`` (from 0)."""
        done = min(1.0, step / self.steps) if self.steps else 1.0
        return self.start + (self.end - self.start) * done
