"""Reading code shards: clip number ``index`` of a split from a memory-mapped copy, and a check of every byte.

``datasets`` turns the Parquet files into one Arrow file in its cache, once, and maps it into memory: no more of it is
read than what is asked for. The folder is data and nothing else: no code, no pickle and no feature type of it is used.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets.data_files import DataFilesDict, DataFilesList

from tokvid.data.clip import Split
from tokvid.data.code_shards.format import (
    DATA_FOLDER,
    FACTS_FILE,
    CodecFacts,
    CodeRecord,
    ShardFacts,
    ShardsFacts,
    check_rows,
    check_schema,
    features,
    from_row,
    read_facts,
)
from tokvid.data.code_shards.quiet import quiet
from tokvid.errors import DataError, did_you_mean


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipShapes:
    """Of each of N clips, arrays ``[N]``: frames, height and width in pixels, frames a second, number of actions."""

    num_frames: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    fps: npt.NDArray[np.float64]
    actions: npt.NDArray[np.int32]


class CodeShards:
    """The clips of one split of a folder of code shards, numbered from 0, as :class:`CodeRecord`.

    Opening looks at every column but the codes: :class:`DataError` names the file where a shard is missing, torn or
    contradicts itself. ``cache_dir`` is where ``datasets`` keeps its copy (default: where it keeps all of them).
    """

    def __init__(self, folder: str | Path, split: Split = "train", *, cache_dir: str | Path | None = None) -> None:
        self.folder, self.split = Path(folder), split
        self.facts = read_facts(self.folder)
        if not self.facts.clips.get(split):
            raise DataError(f"{folder}: has no clips of split {split!r}: {did_you_mean(split, self.facts.clips)}")
        self._shards = [shard for shard in self.facts.shards if shard.split == split]
        for shard in self._shards:
            _open_file(self.folder, shard, self.codec).close()
        self._rows = self._mapped(cache_dir).with_format("arrow")
        first = 0
        table = self._rows[:]
        for shard in self._shards:
            check_rows(table.slice(first, shard.clips), self.codec, self.folder / shard.file, codes=False)
            first += shard.clips

    @property
    def codec(self) -> CodecFacts:
        """The codec whose codes these are."""
        return self.facts.codec

    def __len__(self) -> int:
        return self.facts.clips[self.split]

    def __getitem__(self, index: int) -> CodeRecord:
        """Clip ``index``; IndexError outside [0, len), :class:`DataError` for codes that the codebook does not have."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder} holds clips 0 to {len(self) - 1} of {self.split}, got {index}")
        record = from_row(self._rows[index])
        if record.codes.max() >= self.codec.codebook_size:
            raise DataError(
                f"{self.folder}: clip {index} of {self.split} ({record.name}) has code {record.codes.max()}, its"
                f" codebook {self.codec.codebook_size}: 'tokvid info' finds the damaged file"
            )
        return record

    def check_codec(self, codec_id: str) -> None:
        """:class:`DataError` unless these are codes of the codec called ``codec_id``."""
        if codec_id != self.codec.codec_id:
            raise DataError(
                f"{self.folder}: these shards hold codes of {self.codec.codec_id}, the model speaks {codec_id}:"
                " tokenize the data again with that codec"
            )

    def names(self) -> list[str]:
        """The name of every clip."""
        return self._column("name").to_pylist()  # type: ignore[no-any-return]

    def captions(self) -> list[str]:
        """The caption of every clip; an empty one where it has none."""
        return self._column("caption").to_pylist()  # type: ignore[no-any-return]

    def grids(self) -> npt.NDArray[np.int64]:
        """The latent grid of every clip, ``[N,3]`` (t, h, w)."""
        sides = [np.asarray(self._column(name), np.int64) for name in ("t", "h", "w")]
        grids: npt.NDArray[np.int64] = np.stack(sides, axis=1)
        return grids

    def shapes(self) -> ClipShapes:
        """How long, how large and how fast every clip is, and how many actions it has, without reading codes."""
        columns = {name: np.asarray(self._column(name)) for name in ("num_frames", "height", "width", "fps")}
        counts = pc.list_value_length(self._column("actions")).to_numpy()
        return ClipShapes(**columns, actions=counts)

    def lengths(self) -> npt.NDArray[np.int64]:
        """How many codes every clip has, ``[N]``: K*t*h*w."""
        cells: npt.NDArray[np.int64] = self.grids().prod(axis=1)
        return cells * self.codec.num_codebooks

    def digest(self) -> str:
        """64 hex digits that differ where the shards of this split do.

        They are made of the digests in ``code_shards.json``. That a file still has its own is seen by ``tokvid info``;
        opening looks at sizes alone.
        """
        parts = [self.codec.codec_id, self.split, *(shard.sha256 for shard in self._shards)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _column(self, name: str) -> pa.ChunkedArray:
        return self._rows[:][name]

    def _mapped(self, cache_dir: str | Path | None) -> datasets.Dataset:
        paths = [(self.folder / shard.file).resolve() for shard in self._shards]
        # Given whole, so that no name is taken for a pattern, and a copy is known by what was written and when.
        files = DataFilesList(
            [str(path) for path in paths],
            [(shard.sha256, str(path.stat().st_mtime_ns)) for shard, path in zip(self._shards, paths, strict=True)],
        )
        try:
            with quiet():
                return datasets.Dataset.from_parquet(
                    DataFilesDict({self.split: files}),
                    split=datasets.NamedSplit(self.split),
                    features=features(self.codec),
                    cache_dir=None if cache_dir is None else str(cache_dir),
                )
        except datasets.exceptions.DatasetGenerationError:
            for shard in self._shards:  # which of them it was, it does not say
                with _open_file(self.folder, shard, self.codec) as file:
                    collections.deque(_read_rows(file, self.folder / shard.file), maxlen=0)
            raise


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """What one split holds: ``grids`` counts the clips of each, ``captions`` and ``actions`` those that have some."""

    clips: int
    shards: int
    bytes: int
    codes: int
    pixels: int
    captions: int
    actions: int
    grids: dict[str, int]

    @property
    def bits_per_pixel(self) -> float:
        """Bits of its files a pixel of its clips."""
        return 8 * self.bytes / self.pixels if self.pixels else 0.0


def verify(
    folder: str | Path, *, progress: Callable[[int, int], None] | None = None
) -> tuple[ShardsFacts, dict[str, SplitSummary]]:
    """Read every byte of a folder of code shards: what it says of itself, and what each split holds.

    :class:`DataError` names the first file that is missing, unknown, not the one that was written, or wrong in itself.
    ``progress(done, total)`` counts shards. It needs memory for one group of rows (a shard, as tokvid writes them).
    """
    folder = Path(folder)
    facts = read_facts(folder)
    known = {folder / shard.file for shard in facts.shards}
    if strangers := sorted(set((folder / DATA_FOLDER).glob("*.parquet")) - known):
        raise DataError(f"{strangers[0]}: {FACTS_FILE} does not name this shard; remove it, others would read it too")
    found = {split: _Counts() for split in facts.clips}
    for number, shard in enumerate(facts.shards, start=1):
        _verify_shard(folder, shard, facts.codec, found[shard.split])
        if progress is not None:
            progress(number, len(facts.shards))
    return facts, {split: counts.summary() for split, counts in found.items()}


class _Counts:
    """What was seen of a split so far."""

    def __init__(self) -> None:
        self.total: collections.Counter[str] = collections.Counter()
        self.grids: collections.Counter[str] = collections.Counter()

    def add(self, rows: pa.Table) -> None:
        num_frames, height, width, *grid = (
            rows[name].to_numpy().astype(np.int64) for name in ("num_frames", "height", "width", "t", "h", "w")
        )
        self.grids.update("x".join(map(str, sides)) for sides in zip(*grid, strict=True))
        self.total.update(
            clips=len(rows),
            codes=sum(len(chunk.flatten()) for chunk in rows["codes"].chunks),
            pixels=int((num_frames * height * width).sum()),
            captions=sum(map(bool, rows["caption"].to_pylist())),
            actions=sum(map(bool, rows["actions"].to_pylist())),
        )

    def summary(self) -> SplitSummary:
        names = ("clips", "shards", "bytes", "codes", "pixels", "captions", "actions")
        return SplitSummary(grids=dict(self.grids), **{name: self.total[name] for name in names})


def _verify_shard(folder: Path, shard: ShardFacts, codec: CodecFacts, counts: _Counts) -> None:
    path = folder / shard.file
    # Rows first: of a damaged file they may say more than that it is damaged.
    with _open_file(folder, shard, codec) as file:
        for rows in _read_rows(file, path):
            check_rows(rows, codec, path, codes=True)
            counts.add(rows)
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != shard.sha256:
        raise DataError(
            f"{path}: is not the file that was written (its SHA-256 differs from {FACTS_FILE}); copy it again"
        )
    counts.total.update(shards=1, bytes=shard.bytes)


def _open_file(folder: Path, shard: ShardFacts, codec: CodecFacts) -> pq.ParquetFile:
    """The file of a shard, which is there, as large as it was written, with its columns and as many records."""
    path = folder / shard.file
    if not path.is_file():
        raise DataError(f"{path}: is missing, {FACTS_FILE} names it; copy it again, or tokenize the data again")
    if path.stat().st_size != shard.bytes:
        raise DataError(f"{path}: has {path.stat().st_size} bytes where {shard.bytes} were written; copy it again")
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise _torn(path, error) from error
    check_schema(file.schema_arrow, codec, path)
    if file.metadata.num_rows != shard.clips:
        raise DataError(
            f"{path}: holds {file.metadata.num_rows} clips, {shard.clips} by {FACTS_FILE}; tokenize the data again"
        )
    return file


def _read_rows(file: pq.ParquetFile, path: Path) -> Iterator[pa.Table]:
    for group in range(file.num_row_groups):
        try:
            yield file.read_row_group(group)
        except (pa.ArrowException, OSError) as error:
            raise _torn(path, error) from error


def _torn(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(f"{path}: cannot be read as Parquet ({reason}); copy it again, or tokenize the data again")
