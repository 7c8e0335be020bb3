"""Held-out clips that show what training clips show: pieces of one film, cut apart before they came here.

A split by file name puts neighbouring or overlapping pieces on both sides, and the held-out figures then tell how well
a model remembers. This looks at pictures alone, very small ones; it does not know where a clip comes from.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_SIDE = 8  # thumbnails of 8x8
_PICTURES = 4  # of a held-out clip that are looked for among all pictures of the training clips
_ALIKE = 3.0  # root mean square over a thumbnail, of 255 levels: another encoding of the same moment stays below 1
_FLAT = 4.0  # a picture whose thumbnail varies less (black, white, a fade) tells nothing about where it comes from
_ROWS = 4096  # training pictures compared at once

Clips = npt.NDArray[np.uint8]


def near_copies(train: Clips, held_out: Clips) -> npt.NDArray[np.bool_]:
    """Which of the ``held_out`` clips uint8 ``[M,T,H,W,3]`` show the pictures of ``train`` ``[N,T,H,W,3]``.

    True where at least half of four pictures spread over the clip, flat ones aside, are almost in a training clip too.
    """
    chosen = np.linspace(0, held_out.shape[1] - 1, _PICTURES).round().astype(int)
    wanted = _thumbnails(held_out[:, chosen])
    telling = wanted.std(axis=1) >= _FLAT
    nearest = np.full(len(wanted), np.inf, np.float32)
    clips = max(1, _ROWS // train.shape[1])
    for start in range(0, len(train), clips):
        known = _thumbnails(train[start : start + clips])
        squares = (wanted**2).sum(1)[:, None] + (known**2).sum(1)[None] - 2.0 * wanted @ known.T
        np.minimum(nearest, squares.min(axis=1), out=nearest)
    alike = telling & (nearest / wanted.shape[1] < _ALIKE**2)
    found: npt.NDArray[np.bool_] = alike.reshape(len(held_out), -1).sum(axis=1) * 2 >= _PICTURES
    return found


def _thumbnails(clips: Clips) -> npt.NDArray[np.float32]:
    """Means over cells of every picture, around 0: float32 ``[n*T, cells*3]``."""
    pictures = clips.reshape(-1, *clips.shape[2:]).astype(np.float32) - 128.0
    for axis in (1, 2):
        length = pictures.shape[axis]
        edges = np.arange(min(_SIDE, length)) * length // min(_SIDE, length)
        widths = np.diff(np.append(edges, length)).astype(np.float32)
        sums = np.add.reduceat(pictures, edges, axis=axis)
        pictures = sums / widths.reshape([-1 if dimension == axis else 1 for dimension in range(4)])
    return pictures.reshape(len(pictures), -1)
