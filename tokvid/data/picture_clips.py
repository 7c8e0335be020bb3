"""The pictures of a folder as clips of one frame, for training on still images beside videos.

A picture is turned upright as its EXIF says, resized until it covers the wanted size, and cut at its centre, as videos
are. Pillow decodes: FFmpeg fills the missing part of a truncated JPEG with grey without a word.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tokvid.data.clip import Clip
from tokvid.data.clip_source import ClipSource
from tokvid.errors import DataError, VideoError

PICTURE_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".webp"])
_EIGHT_BITS = frozenset(["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"])
# What Pillow raises for damaged files, by format.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class PictureClips(ClipSource):
    """Every picture below ``path`` at ``size`` (H, W), in the order of the names; opening it looks into none.

    :class:`DataError` where there is none. Transparency is dropped. Hidden files and folders are not looked at.
    """

    def __init__(self, path: str, size: tuple[int, int]) -> None:
        folder = Path(path)
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; name one with pictures")
        self.size, self.num_frames, self.fps = size, 1, 1.0
        self.name = folder.resolve().name
        self._folder = folder
        self._names = sorted(
            name.as_posix()
            for name in (file.relative_to(folder) for file in folder.rglob("*"))
            if name.suffix.lower() in PICTURE_SUFFIXES and not any(part.startswith(".") for part in name.parts)
        )
        if not self._names:
            raise DataError(f"{folder}: holds no picture (of {', '.join(sorted(PICTURE_SUFFIXES))}); add some")

    def __len__(self) -> int:
        return len(self._names)

    def clip_name(self, index: int) -> str:
        return self._names[index]

    def load(self, index: int) -> Clip:
        self._check_index(index)
        path, (height, width) = self._folder / self._names[index], self.size
        try:
            with Image.open(path) as picture:
                # A JPEG can be decoded at a fraction of its size; this keeps twice what is needed.
                picture.draft(None, (2 * max(self.size), 2 * max(self.size)))
                upright = ImageOps.exif_transpose(picture)
                if upright.mode not in _EIGHT_BITS:
                    raise VideoError(f"{path}: has pixels of mode {upright.mode}, not of 8 bits; convert it")
                rgb = ImageOps.fit(upright.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
        except _DAMAGED as error:
            raise VideoError(f"{path}: cannot be read as a picture ({error}); remove it or copy it again") from error
        return Clip(frames=np.asarray(rgb)[None], fps=self.fps, caption="", name=self._names[index])

    def digest(self, *, words: bool = False) -> str:
        """SHA-256 (64 hex digits) of the size, and of the names and sizes in bytes of the files."""
        digest = hashlib.sha256(repr(self.size).encode())
        for name in self._names:
            digest.update(repr((name, (self._folder / name).stat().st_size)).encode())
        return digest.hexdigest()
