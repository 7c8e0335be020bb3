"""The motions: their names, the paths they draw, and the sprite-motion combinations kept for evaluation.

Paths are pixel positions of a sprite's top left corner. It knows nothing of pictures.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import numpy.typing as npt

from tokvid.data.clip import Split
from tokvid.data.sprites.sheet import SPRITES

Ints = npt.NDArray[np.int64]

# Straight motions with the sign of their vertical and horizontal displacement; rows grow downwards.
DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (0, -1),
    "right": (0, 1),
    "up": (-1, 0),
    "down": (1, 0),
    "up-left": (-1, -1),
    "up-right": (-1, 1),
    "down-left": (1, -1),
    "down-right": (1, 1),
}
BOUNCES: dict[str, tuple[int, int]] = {"bounce-sideways": (0, 1), "bounce-upright": (1, 0)}
MOTIONS: tuple[str, ...] = (*DIRECTIONS, *BOUNCES, "stay")

HELD_OUT_SHARE = 0.12
MIN_TRAVEL = 0.28  # of the frame's side: less is hard to see
MAX_TRAVEL = 0.66


@cache
def combinations(split: Split) -> tuple[tuple[str, str], ...]:
    """The (sprite, motion) combinations of a split, in sheet order.

    A combination is held out when the hash of its names says so, hence independently of every seed and of
    the other names: growing the sheet moves nothing from one split to the other. So the 82 that are held out are
    uneven: 15 of the 64 sprites have none and are never judged in a new motion, "right" has 12 and "up" has 3.
    """
    every = [(sprite, motion) for sprite in SPRITES for motion in MOTIONS]
    return tuple(pair for pair in every if is_held_out(*pair) == (split == "held_out"))


def is_held_out(sprite: str, motion: str) -> bool:
    """Whether no clip of the train split shows ``sprite`` doing ``motion``."""
    digest = hashlib.sha256(f"{sprite}|{motion}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def draw_paths(
    motion: str, frame: tuple[int, int], size: int, num_frames: int, count: int, rng: np.random.Generator
) -> Ints:
    """Draw ``count`` paths ``[count,T,2]`` of (top, left) for a sprite of ``size`` pixels inside ``frame`` (H,W).

    A moving sprite travels at least ``MIN_TRAVEL`` of the frame's side on every axis it moves on (less only
    where the frame leaves less room); a bouncing one swings that far, and turns at least once.
    """
    sides = np.array(frame, np.float64)
    room = sides - size
    signs = np.array(DIRECTIONS.get(motion, BOUNCES.get(motion, (0, 0))), np.float64)
    wanted = rng.uniform(MIN_TRAVEL, MAX_TRAVEL, (count, 1)) * rng.uniform(0.9, 1.1, (count, 2))
    travel = np.minimum(np.maximum(wanted, MIN_TRAVEL) * sides, room) * np.abs(signs)  # [count,2]
    corner = rng.random((count, 2)) * (room - travel)
    if motion in BOUNCES:
        legs = rng.uniform(2.0, 3.5, (count, 1)) * np.linspace(0.0, 1.0, num_frames)
        swing = np.abs(np.mod(legs + 2.0 * rng.random((count, 1)), 2.0) - 1.0)  # triangle wave in [0, 1]
        progress = np.repeat(swing[:, :, None], 2, axis=2)
    else:
        line = np.linspace(0.0, 1.0, num_frames)[:, None]
        progress = np.where(signs < 0, 1.0 - line, line)[None]  # [1,T,2]
    paths: Ints = np.rint(corner[:, None, :] + travel[:, None, :] * progress).astype(np.int64)
    return paths
