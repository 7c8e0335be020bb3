"""The backgrounds: eight named, procedural textures, each a formula of a few drawn parameters.

Every texture is smooth enough to be compressed and varied enough (phase, tint, scale, contrast) that it
cannot be learnt by heart. It knows nothing of sprites or time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

BASE_COLORS: dict[str, tuple[int, int, int]] = {
    "grass": (96, 146, 72),
    "sand": (212, 184, 134),
    "water": (46, 116, 150),
    "sky": (142, 188, 234),
    "snow": (214, 222, 230),
    "night": (34, 34, 72),
    "brick": (156, 84, 68),
    "stone": (124, 122, 120),
}
BACKGROUNDS: tuple[str, ...] = tuple(BASE_COLORS)


@dataclass(frozen=True, kw_only=True)
class Background:
    """A named texture and its parameters.

    ``phases`` in [0, 1) shift its waves, ``scale`` multiplies its frequencies, ``tint`` is added to the
    base colour (of 255), ``contrast`` is the deviation of its brightness (of 255).
    """

    name: str
    phases: tuple[float, float, float, float]
    scale: float
    tint: tuple[float, float, float]
    contrast: float


def draw_background(rng: np.random.Generator) -> Background:
    """Draw a background: the name uniformly, then its parameters."""
    name = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    phases = rng.random(4)
    brightness, *hue = rng.uniform(-1.0, 1.0, 4)
    tint = [round(8.0 * float(brightness) + 4.0 * float(h), 2) for h in hue]
    return Background(
        name=name,
        phases=(float(phases[0]), float(phases[1]), float(phases[2]), float(phases[3])),
        scale=float(rng.uniform(0.75, 1.3)),
        tint=(tint[0], tint[1], tint[2]),
        contrast=float(rng.uniform(6.0, 14.0)),
    )


def render_background(background: Background, height: int, width: int) -> Array:
    """Float32 ``[H,W,3]`` in [0, 255]; the pattern scales with the frame's short side."""
    v, u = _coordinates(height, width)
    scale = np.float32(background.scale)
    field = _TEXTURES[background.name](v * scale, u * scale, background.phases)
    field = field - field.mean()
    field *= np.float32(background.contrast / max(float(np.sqrt(np.mean(field * field))), 1e-6))
    color = np.array(BASE_COLORS[background.name], np.float32) + np.array(background.tint, np.float32)
    image: Array = field[:, :, None] + color
    return np.clip(image, 0.0, 255.0, out=image)


Phases = tuple[float, float, float, float]


@lru_cache(maxsize=16)
def _coordinates(height: int, width: int) -> tuple[Array, Array]:
    """Rows and columns as ``[H,W]``, where 1 is the short side."""
    short = min(height, width)
    rows = (np.arange(height, dtype=np.float32) + 0.5) / short
    columns = (np.arange(width, dtype=np.float32) + 0.5) / short
    v, u = np.meshgrid(rows, columns, indexing="ij")
    return np.ascontiguousarray(v), np.ascontiguousarray(u)


def _wave(turns: Array, phase: float) -> Array:
    """A sine of ``turns`` full turns, shifted by ``phase`` of a turn."""
    wave: Array = np.sin((turns + np.float32(phase)) * np.float32(2.0 * np.pi))
    return wave


def _grass(v: Array, u: Array, p: Phases) -> Array:
    blades = _wave(5.0 * u + 0.22 * _wave(1.4 * v, p[0]), p[1])
    field: Array = blades * (1.0 + 0.7 * _wave(2.3 * v + 0.8 * u, p[2])) + 0.5 * _wave(0.8 * u - 0.6 * v, p[3])
    return field


def _sand(v: Array, u: Array, p: Phases) -> Array:
    field: Array = _wave(3.6 * v + 0.9 * u + 0.3 * _wave(1.2 * u, p[0]), p[1]) + 0.5 * _wave(0.7 * u + 0.5 * v, p[2])
    return field


def _water(v: Array, u: Array, p: Phases) -> Array:
    ripples = _wave(3.0 * v + 0.16 * _wave(2.2 * u, p[0]), p[1])
    field: Array = ripples + 0.6 * _wave(2.0 * u + 1.1 * v, p[2]) * _wave(1.0 * v, p[3])
    return field


def _sky(v: Array, u: Array, p: Phases) -> Array:
    clouds = _wave(0.9 * u + 0.5 * v, p[0]) + _wave(1.3 * v - 0.6 * u, p[1]) + 0.4 * _wave(2.1 * u, p[2])
    field: Array = np.maximum(clouds, 0.0) + 0.4 * v
    return field


def _snow(v: Array, u: Array, p: Phases) -> Array:
    drifts = np.abs(_wave(0.9 * v + 0.3 * u + 0.12 * _wave(1.1 * u, p[0]), p[1]))
    field: Array = drifts + 0.25 * _wave(1.8 * u - 0.7 * v, p[2])
    return field


def _night(v: Array, u: Array, p: Phases) -> Array:
    lattice = _wave(1.9 * u + 0.15 * v, p[0]) + _wave(1.9 * v - 0.4 * u, p[1])
    stars = np.maximum(lattice - 1.2, 0.0) * 4.0
    field: Array = stars + 0.4 * _wave(0.6 * v + 0.3 * u, p[2])
    return field


def _brick(v: Array, u: Array, p: Phases) -> Array:
    rows = 4.0 * v + np.float32(4.0 * p[0])
    row = np.floor(rows)
    columns = 2.0 * u + np.float32(p[1]) + 0.5 * np.mod(row, 2.0)
    column = np.floor(columns)
    edge = np.minimum(np.abs(rows - row - 0.5), 0.5) / 0.5
    side = np.abs(columns - column - 0.5) / 0.5
    mortar = np.maximum((edge - 0.65) / 0.35, (side - 0.82) / 0.18)
    tone = _wave(0.37 * row + 0.61 * column, p[2])
    field: Array = 2.2 * np.clip(mortar, 0.0, 1.0) + 0.45 * tone
    return field


def _stone(v: Array, u: Array, p: Phases) -> Array:
    across = _wave(1.3 * u + 0.15 * _wave(1.2 * v, p[0]), p[1])
    along = _wave(1.6 * v + 0.15 * _wave(1.5 * u, p[2]), p[3])
    field: Array = np.sqrt(np.abs(across * along))
    return field


_TEXTURES: dict[str, Callable[[Array, Array, Phases], Array]] = {
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "sky": _sky,
    "snow": _snow,
    "night": _night,
    "brick": _brick,
    "stone": _stone,
}
