"""The ``.tokvid`` file: the codes of one video, packed to the bits they need, with what it takes to decode them.

It is a safetensors file with one tensor, ``codes`` uint8 ``[t, bytes a latent frame]``, and its facts as JSON in the
metadata; docs/formats.md has every byte. A latent frame begins on a byte of its own, so any of them can be read alone
and a file can grow. It needs numpy and safetensors only, and knows no model: a codec is a name and a digest here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from tokvid.atomic import atomic_path
from tokvid.config import from_mapping, to_mapping
from tokvid.config_checks import at_least, finite, positive
from tokvid.errors import CheckpointError, ConfigError, ShapeError
from tokvid.grid import check_num_frames

FORMAT_VERSION = 1
SUFFIX = ".tokvid"
MAX_CODEBOOK_SIZE = 2**62
_METADATA = "tokvid"
_TENSOR = "codes"
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class CodesFacts:
    """What a file says of its codes.

    ``height`` and ``width`` are those of the video, which may be smaller than the cells cover: what is beyond was
    padding and is cut off again. ``num_frames`` may be less than the latent frames hold for the same reason.
    """

    format_version: int = FORMAT_VERSION
    codec_id: str
    codebook_size: int
    num_codebooks: int
    temporal_stride: int
    spatial_stride: int
    num_frames: int
    height: int
    width: int
    fps: float
    made_by: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ConfigError(
                f"this tokvid reads {SUFFIX} format {FORMAT_VERSION}, got {self.format_version}; update it"
            )
        at_least(self, 1, "codebook_size", "num_codebooks", "temporal_stride", "spatial_stride")
        at_least(self, 1, "num_frames", "height", "width")
        if self.codebook_size > MAX_CODEBOOK_SIZE:
            raise ConfigError(f"codebook_size must be at most 2^62, got {self.codebook_size}")
        positive(self, "fps")
        finite(self, "fps")

    @property
    def cells(self) -> tuple[int, int]:
        """(h, w) of a latent frame."""
        return -(-self.height // self.spatial_stride), -(-self.width // self.spatial_stride)

    @property
    def bits(self) -> int:
        """Bits a code takes, at least one."""
        return bits_of(self.codebook_size)

    @property
    def row_bytes(self) -> int:
        """Bytes a latent frame takes."""
        height, width = self.cells
        return -(-height * width * self.num_codebooks * self.bits // 8)


def bits_of(codebook_size: int) -> int:
    """Bits that a code of a codebook takes in a file, at least one."""
    return max(1, (codebook_size - 1).bit_length())


def pack(codes: Codes, facts: CodesFacts) -> npt.NDArray[np.uint8]:
    """Codes ``[K,t,h,w]`` to rows uint8 ``[t, facts.row_bytes]``.

    In a row the codes follow each other by height, width, codebook; each has ``facts.bits`` bits, the lowest first, and
    bits fill bytes from the lowest.
    """
    expected = (facts.num_codebooks, *facts.cells)
    if codes.ndim != 4 or (codes.shape[0], *codes.shape[2:]) != expected:
        raise ShapeError(f"expected codes [{expected[0]},t,{expected[1]},{expected[2]}], got {list(codes.shape)}")
    if codes.dtype.kind not in "iu":
        raise ShapeError(f"expected integer codes, got {codes.dtype}")
    if codes.size and not 0 <= codes.min() <= codes.max() < facts.codebook_size:
        raise ShapeError(f"codes must lie in [0, {facts.codebook_size}), got {codes.min()} to {codes.max()}")
    rows = codes.transpose(1, 2, 3, 0).reshape(codes.shape[1], math.prod(expected))
    bits = (rows[:, :, None] >> np.arange(facts.bits)) & 1
    flat = bits.astype(np.uint8).reshape(len(rows), rows.shape[1] * facts.bits)
    return np.packbits(flat, axis=1, bitorder="little")


def unpack(rows: npt.NDArray[np.uint8], facts: CodesFacts) -> Codes:
    """Rows uint8 ``[t, facts.row_bytes]`` to codes int64 ``[K,t,h,w]``; the inverse of :func:`pack`."""
    height, width = facts.cells
    count = height * width * facts.num_codebooks
    bits = np.unpackbits(rows, axis=1, bitorder="little", count=count * facts.bits)
    weights = 1 << np.arange(facts.bits, dtype=np.int64)
    codes = bits.reshape(len(rows), count, facts.bits) @ weights
    return codes.reshape(len(rows), height, width, facts.num_codebooks).transpose(3, 0, 1, 2)


def write_codes(path: str | os.PathLike[str], codes: Codes, facts: CodesFacts) -> None:
    """Write codes ``[K,t,h,w]`` to ``path``, whole or not at all."""
    rows = pack(codes, facts)
    check_num_frames(facts.num_frames, len(rows), facts.temporal_stride)
    with atomic_path(Path(path)) as beside, beside.open("wb") as file:
        file.write(_header(facts, len(rows)))
        file.write(rows.tobytes())


def join_codes(path: str | os.PathLike[str], body: Path, facts: CodesFacts) -> None:
    """Write ``path`` from a file of packed rows, copied in pieces: memory does not grow with the video."""
    count, rest = divmod(body.stat().st_size, facts.row_bytes)
    if rest:
        raise CheckpointError(f"{body} holds {rest} bytes more than {count} latent frames; remove it and encode again")
    check_num_frames(facts.num_frames, count, facts.temporal_stride)
    with atomic_path(Path(path)) as beside, beside.open("wb") as file, body.open("rb") as rows:
        file.write(_header(facts, count))
        shutil.copyfileobj(rows, file)


class CodesFile:
    """A ``.tokvid`` file opened for reading; rows are read when they are asked for.

    Raises :class:`CheckpointError` for a file that is missing, torn, or no such file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with safe_open(self.path, framework="np") as file:
                text = (file.metadata() or {}).get(_METADATA)
                names = list(file.keys())
                tensor = file.get_slice(_TENSOR) if _TENSOR in names else None
                stored = None if tensor is None else (tensor.get_dtype(), *tensor.get_shape())
        except FileNotFoundError:
            raise CheckpointError(f"{self.path} does not exist") from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path} is torn or no {SUFFIX} file ({error}); encode the video again"
            ) from error
        if text is None or stored is None:
            raise CheckpointError(
                f"{self.path} is a safetensors file, but no {SUFFIX} file: it holds no codes of a video"
            )
        try:
            data = json.loads(text)
            if not isinstance(data, dict):
                raise ConfigError(f"its facts are {type(data).__name__}, expected a mapping")
            if data.get("format_version") != FORMAT_VERSION:
                found = data.get("format_version")
                raise ConfigError(f"this tokvid reads {SUFFIX} format {FORMAT_VERSION}, got {found}; update tokvid")
            self.facts = from_mapping(CodesFacts, data)
            if len(stored) != 3 or (stored[0], stored[2]) != ("U8", self.facts.row_bytes):
                raise ShapeError(f"its rows are {stored[0]} {list(stored[1:])}, expected U8 [t,{self.facts.row_bytes}]")
            self.latent_frames = int(stored[1])
            check_num_frames(self.facts.num_frames, self.latent_frames, self.facts.temporal_stride)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.path} contradicts itself: {error}") from error

    def read(self, start: int = 0, stop: int | None = None) -> Codes:
        """Codes int64 ``[K,n,h,w]`` of the latent frames from ``start`` up to ``stop`` (None: the end).

        Raises :class:`CheckpointError` where they are damaged, :class:`ShapeError` for frames that are not there.
        """
        stop = self.latent_frames if stop is None else stop
        if not 0 <= start < stop <= self.latent_frames:
            raise ShapeError(f"{self.path} holds latent frames 0 to {self.latent_frames}, got {start} to {stop}")
        with safe_open(self.path, framework="np") as file:
            rows = file.get_slice(_TENSOR)[start:stop]
        codes = unpack(rows, self.facts)
        if codes.size and codes.max() >= self.facts.codebook_size:
            raise CheckpointError(
                f"{self.path} holds code {codes.max()}, its codebook has {self.facts.codebook_size}: it is damaged"
            )
        used = codes[:, 0].size * self.facts.bits % 8
        if used and (rows[:, -1] >> used).any():
            raise CheckpointError(f"{self.path} holds bits after the last code of a latent frame: it is damaged")
        return codes


def with_num_frames(facts: CodesFacts, num_frames: int) -> CodesFacts:
    """``facts`` of a video whose length was not known before."""
    return dataclasses.replace(facts, num_frames=num_frames)


def _header(facts: CodesFacts, latent_frames: int) -> bytes:
    """The head of a safetensors file: its length in 8 bytes, then JSON, filled with spaces to a multiple of 8."""
    size = latent_frames * facts.row_bytes
    head = {
        "__metadata__": {_METADATA: json.dumps(to_mapping(facts))},
        _TENSOR: {"dtype": "U8", "shape": [latent_frames, facts.row_bytes], "data_offsets": [0, size]},
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
