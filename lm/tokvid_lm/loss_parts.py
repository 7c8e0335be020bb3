"""What the log says of a loss: bits a label, of text and of codes by mode and latent frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokvid_lm.vocabulary import MODES

_BITS = 1.0 / 0.6931471805599453


@dataclass(frozen=True)
class LossParts:
    """Sums of nats and their numbers, as :class:`~tokvid_lm.objectives.video_objective.VideoObjective` gives them.

    Of a ``continuous`` model those of videos are no nats but squared errors of a velocity, and called ``flow``.
    """

    nats: Sequence[float]
    count: Sequence[float]
    continuous: bool = False

    @property
    def codes(self) -> float:
        """How many codes were asked for."""
        return sum(self.count[1:])

    def text(self) -> float | None:
        """Nats a text id, or None where no text was asked for."""
        return self.nats[0] / self.count[0] if self.count[0] else None

    def by_mode(self) -> dict[str, float]:
        """Nats a code by mode, of the modes there were."""
        frames = (len(self.count) - 1) // len(MODES)
        found: dict[str, float] = {}
        for number, mode in enumerate(MODES):
            part = slice(1 + number * frames, 1 + (number + 1) * frames)
            if count := sum(self.count[part]):
                found[mode] = sum(self.nats[part]) / count
        return found

    def summary(self) -> dict[str, float]:
        """Bits by name, for the line that a person reads."""
        text = self.text()
        return in_words(self.by_mode() | ({} if text is None else {"text": text}), continuous=self.continuous)

    def by_frame(self) -> dict[str, float]:
        """Bits a code by mode and latent frame, for the files."""
        frames = (len(self.count) - 1) // len(MODES)
        word, unit = ("flow", 1.0) if self.continuous else ("bits", _BITS)
        return {
            f"{word}/{MODES[number // frames]}/frame {number % frames}": nats / count * unit
            for number, (nats, count) in enumerate(zip(self.nats[1:], self.count[1:], strict=True))
            if count
        }


def in_words(nats: Mapping[str, float], *, continuous: bool) -> dict[str, float]:
    """``bits (caption)`` of nats by name; of the videos of a ``continuous`` model ``flow (frame)``, as they are."""
    return {
        **{f"flow ({name})": value for name, value in nats.items() if continuous and name in MODES},
        **{f"bits ({name})": value * _BITS for name, value in nats.items() if not (continuous and name in MODES)},
    }
