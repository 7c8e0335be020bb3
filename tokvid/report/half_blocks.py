"""Pictures as lines of coloured text, two pixels a letter, for terminals that know 24-bit colours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

_UPPER = "\u2580"  # the upper half of a letter's box; its lower half shows the background
_RESET = "\x1b[0m"


def half_blocks(picture: npt.NDArray[np.uint8], columns: int) -> list[str]:
    """A picture uint8 ``[H,W,3]`` as lines of at most ``columns`` letters; larger ones are shrunk, none is enlarged."""
    height, width = picture.shape[:2]
    if width > columns:
        size = (columns, max(1, round(height * columns / width)))
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
    if len(picture) % 2:
        picture = np.concatenate([picture, picture[-1:]])
    lines = []
    for upper, lower in zip(picture[::2].tolist(), picture[1::2].tolist(), strict=True):
        boxes = [
            f"\x1b[38;2;{top[0]};{top[1]};{top[2]};48;2;{low[0]};{low[1]};{low[2]}m{_UPPER}"
            for top, low in zip(upper, lower, strict=True)
        ]
        lines.append("".join(boxes) + _RESET)
    return lines
