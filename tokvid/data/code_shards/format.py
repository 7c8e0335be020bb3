"""What a folder of code shards holds: the columns of its Parquet files, and ``code_shards.json``.

docs/formats.md describes both. Nothing here opens a Parquet file or knows a model: a codec is a name and some numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tokvid.config import from_mapping
from tokvid.config_checks import at_least
from tokvid.data.clip_source import Skipped
from tokvid.errors import ConfigError, DataError, ShapeError
from tokvid.grid import Grid
from tokvid.saved_json import read_mapping

FORMAT_VERSION = 1
FACTS_FILE = "code_shards.json"
CARD_FILE = "README.md"
DATA_FOLDER = "data"
UNFINISHED = "unfinished"
"""The folder that a run which is not at its end keeps its state in, and first of all:"""
PLAN_FILE = f"{UNFINISHED}/plan.json"
_AGAIN = "copy the file again, or tokenize the data again"
_FILE = re.compile(r"data/(\w+)-\d{5,}-of-\d{5,}\.parquet", re.ASCII)
_SHAPE = ("num_frames", "height", "width", "t", "h", "w", "num_codebooks")
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class CodecFacts:
    """The codec that made the codes, as far as codes tell of it."""

    codec_id: str
    codebook_size: int
    num_codebooks: int
    temporal_stride: int
    spatial_stride: int

    def __post_init__(self) -> None:
        at_least(self, 1, "codebook_size", "num_codebooks", "temporal_stride", "spatial_stride")

    @property
    def code_type(self) -> str:
        """The smallest unsigned type that holds a code, as numpy and Arrow call it."""
        if self.codebook_size <= 1 << 8:
            return "uint8"
        return "uint16" if self.codebook_size <= 1 << 16 else "uint32"


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """One Parquet file, ``file`` relative to the folder: ``clips`` records of a split."""

    file: str
    split: str
    clips: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        match = _FILE.fullmatch(self.file)
        if match is None or match[1] != self.split:
            raise ConfigError(f"a shard of {self.split!r} has another name than {self.file!r}")
        at_least(self, 0, "clips")


@dataclass(frozen=True, kw_only=True)
class ShardsFacts:
    """``code_shards.json``. ``data`` says of what the clips were read, ``clips`` how many records a split has.

    A shard was made of ``shard_clips`` clips, fewer where it is the last of its split; those of ``skipped`` gave none.
    """

    format_version: int = FORMAT_VERSION
    codec: CodecFacts
    clips: dict[str, int]
    data: dict[str, Any]
    shard_clips: int
    shards: tuple[ShardFacts, ...]
    skipped: tuple[Skipped, ...] = ()
    made_by: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.clips != count_clips(self.shards):
            raise ConfigError(
                f"its splits have {count_clips(self.shards)} clips by the shards, {self.clips} by 'clips'"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeRecord:
    """One clip as codes ``[K,t,h,w]``, with what belongs to it.

    ``num_frames``, ``height`` and ``width`` are those of the clip. ``actions`` holds T-1 numbers from 0 on, or nothing.
    """

    codes: Codes
    name: str
    caption: str = ""
    actions: tuple[int, ...] = ()
    fps: float
    num_frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.codes.ndim != 4 or 0 in self.codes.shape:
            raise ShapeError(f"expected codes [K,t,h,w], got {list(self.codes.shape)}")

    @property
    def grid(self) -> Grid:
        """The clip's latent grid."""
        t, h, w = self.codes.shape[1:]
        return Grid(t=t, h=h, w=w)


def count_clips(shards: tuple[ShardFacts, ...]) -> dict[str, int]:
    """Records a split, in the order in which the splits come."""
    counts: dict[str, int] = {}
    for shard in shards:
        counts[shard.split] = counts.get(shard.split, 0) + shard.clips
    return counts


def is_code_shards(folder: str | Path) -> bool:
    """Whether ``folder`` holds code shards, finished or not."""
    return any((Path(folder) / name).is_file() for name in (FACTS_FILE, PLAN_FILE))


def read_facts(folder: Path) -> ShardsFacts:
    """What ``code_shards.json`` says; :class:`DataError` or CheckpointError where it says nothing sensible."""
    path = folder / FACTS_FILE
    if not path.exists() and (folder / PLAN_FILE).is_file():
        raise DataError(f"{folder}: its code shards are not finished; give the command that began them again")
    data = read_mapping(path, "folder of code shards")
    if data.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: this tokvid reads code shards of format {FORMAT_VERSION}, got {data.get('format_version')};"
            " update tokvid"
        )
    try:
        return from_mapping(ShardsFacts, data)
    except ConfigError as error:
        raise DataError(f"{path}: {error}; tokenize the data again") from error


def features(codec: CodecFacts) -> datasets.Features:
    """The columns of every shard, as ``datasets`` describes them."""
    value, sequence = datasets.Value, datasets.Sequence
    return datasets.Features(
        {
            "name": value("string"),
            "caption": value("string"),
            "actions": sequence(value("int32")),
            "fps": value("float64"),
            **{name: value("int32") for name in _SHAPE},
            "codec_id": value("string"),
            "codes": sequence(value(codec.code_type)),
        }
    )


def to_row(record: CodeRecord, codec: CodecFacts) -> dict[str, Any]:
    """The columns of a record; :class:`ShapeError` for codes that the codec does not have."""
    if not 0 <= record.codes.min() <= record.codes.max() < codec.codebook_size:
        raise ShapeError(
            f"{record.name}: codes must lie in [0, {codec.codebook_size}), got {record.codes.min()} to"
            f" {record.codes.max()}"
        )
    num_codebooks, t, h, w = record.codes.shape
    return {
        "name": record.name,
        "caption": record.caption,
        "actions": list(record.actions),
        "fps": record.fps,
        "num_frames": record.num_frames,
        "height": record.height,
        "width": record.width,
        "t": t,
        "h": h,
        "w": w,
        "num_codebooks": num_codebooks,
        "codec_id": codec.codec_id,
        "codes": record.codes.astype(codec.code_type).reshape(-1),
    }


def from_row(row: pa.Table) -> CodeRecord:
    """The record of a table of one row whose shape was checked; the inverse of :func:`to_row`."""
    flat = row.column("codes").chunk(0).flatten().to_numpy()
    values = row.drop_columns(["codes"]).to_pylist()[0]
    shape = [values[name] for name in ("num_codebooks", "t", "h", "w")]
    return CodeRecord(
        codes=flat.astype(np.int64).reshape(shape),
        name=values["name"],
        caption=values["caption"],
        actions=tuple(values["actions"]),
        fps=values["fps"],
        num_frames=values["num_frames"],
        height=values["height"],
        width=values["width"],
    )


def check_schema(schema: pa.Schema, codec: CodecFacts, path: Path) -> None:
    """:class:`DataError` unless the columns are those of a shard of that codec."""
    expected = features(codec).arrow_schema
    found = {field.name: field.type for field in schema}
    for column in expected:
        if found.get(column.name) != column.type:
            got = found.get(column.name, "none")
            raise DataError(f"{path}: must have a column {column.name!r} of {column.type}, got {got}; {_AGAIN}")
    if extra := sorted(set(found) - set(expected.names)):
        raise DataError(f"{path}: has columns that no code shard has: {', '.join(extra)}; {_AGAIN}")


def check_rows(rows: pa.Table, codec: CodecFacts, path: Path, *, codes: bool) -> None:
    """:class:`DataError` that names the first record of ``path`` that contradicts itself or the codec.

    Every column is looked at but the codes themselves, of which only the count is; with ``codes`` they are too.
    """
    for name in rows.column_names:
        column = rows[name]
        inner = pc.list_flatten(column) if pa.types.is_list(column.type) else column
        if column.null_count or inner.null_count:
            raise DataError(f"{path}: has an empty place in column {name!r}; {_AGAIN}")
        if name == "actions" and len(inner) and pc.min(inner).as_py() < 0:
            raise DataError(f"{path}: has an action below 0, {pc.min(inner)}; {_AGAIN}")
    numbers = {name: rows[name].to_numpy().astype(np.int64) for name in _SHAPE}
    fps = rows["fps"].to_numpy()
    num_frames, height, width, t, h, w, num_codebooks = (numbers[name] for name in _SHAPE)
    actions, count = (pc.list_value_length(rows[name]).to_numpy() for name in ("actions", "codes"))
    stride = codec.spatial_stride
    # Compared by Arrow: to numpy a text is the same without the NULs at its end.
    foreign = pc.not_equal(rows["codec_id"], codec.codec_id).to_numpy()
    rules = [
        (foreign, f"must be of codec {codec.codec_id}", ("codec_id",)),
        (np.min([*numbers.values()], axis=0) < 1, "must have a size of at least 1", _SHAPE),
        (num_codebooks != codec.num_codebooks, f"must have {codec.num_codebooks} codebooks", ("num_codebooks",)),
        (
            t != 1 - (1 - num_frames) // codec.temporal_stride,
            "must have the latent frames of its frames",
            ("num_frames", "t"),
        ),
        ((h != -(-height // stride)) | (w != -(-width // stride)), "must have the cells of its pixels", _SHAPE[1:6]),
        (~(np.isfinite(fps) & (fps > 0)), "must have a rate above 0", ("fps",)),
        ((actions > 0) & (actions != num_frames - 1), "must have an action between any two frames, or none", ()),
        # As floating point numbers, of which no product is too large.
        (1.0 * num_codebooks * t * h * w != count, "must have num_codebooks*t*h*w codes", _SHAPE[3:]),
    ]
    if codes:
        rules.append(
            (_largest(rows["codes"]) >= codec.codebook_size, f"has codes beyond {codec.codebook_size - 1}", ())
        )
    for wrong, text, columns in rules:
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            got = ", ".join(f"{column} {rows[column][row]}" for column in columns)
            what = f"record {row} ({rows['name'][row]}) {text}"
            raise DataError(f"{path}: {what}{f', got {got}' if got else ''}; {_AGAIN}")


def _largest(codes: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The largest of each list; -1 of an empty one."""
    largest = [np.empty(0, np.int64)]
    for chunk in codes.chunks:
        flat, counts = chunk.flatten().to_numpy(), pc.list_value_length(chunk).to_numpy()
        starts = np.cumsum(counts) - counts
        found = np.full(len(chunk), -1, np.int64)
        # reduceat takes the number at the start of an empty list, so these are left out
        full = counts > 0
        if full.any():
            found[full] = np.maximum.reduceat(flat, starts[full])
        largest.append(found)
    return np.concatenate(largest)
