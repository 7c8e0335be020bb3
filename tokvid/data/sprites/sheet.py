"""The sprites: their names and their pictures at any size. It knows nothing of motion or clips."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt
from PIL import Image

from tokvid.errors import DataError, did_you_mean

_FOLDER = files(__package__)
_SHEET = json.loads(_FOLDER.joinpath("sheet.json").read_text(encoding="utf-8"))

SPRITES: tuple[str, ...] = tuple(entry["name"] for entry in _SHEET["sprites"])


@dataclass(frozen=True, kw_only=True, eq=False)
class SpritePicture:
    """A sprite at ``s`` by ``s`` pixels.

    ``color`` is float32 ``[s,s,3]`` in [0, 255], already multiplied by ``alpha``, float32 ``[s,s,1]`` in
    [0, 1]; over a background the pixel is ``color + (1 - alpha) * background``.
    """

    color: npt.NDArray[np.float32]
    alpha: npt.NDArray[np.float32]


@lru_cache(maxsize=8192)
def sprite_picture(name: str, size: int) -> SpritePicture:
    """The sprite ``name`` at ``size`` by ``size`` pixels, read-only; DataError for an unknown name."""
    if name not in SPRITES:
        raise DataError(f"no sprite is called {name!r}: {did_you_mean(name, SPRITES)}")
    # Pillow widens its kernel when it shrinks (antialiasing) and resamples with premultiplied alpha.
    small = _pictures()[name].resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(small, dtype=np.float32)
    alpha = pixels[..., 3:] / np.float32(255.0)
    color = pixels[..., :3] * alpha
    color.setflags(write=False)
    alpha.setflags(write=False)
    return SpritePicture(color=color, alpha=alpha)


@cache
def _pictures() -> dict[str, Image.Image]:
    cell, columns = int(_SHEET["cell"]), int(_SHEET["columns"])
    with _FOLDER.joinpath("sheet.png").open("rb") as file:
        sheet = Image.open(file).convert("RGBA")
    pictures = {}
    for number, name in enumerate(SPRITES):
        row, column = divmod(number, columns)
        left, top = column * cell, row * cell
        pictures[name] = sheet.crop((left, top, left + cell, top + cell))
    return pictures
