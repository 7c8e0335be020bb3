"""Writing code shards: one whole file after the other, by any number of processes, stopped and taken up at any moment.

What a shard holds follows from the plan alone, so that a run that was killed ends with the files of one that was not.
What is encoded, and how, is not known here.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets

from tokvid.atomic import atomic_path, write_text
from tokvid.config import from_mapping, to_mapping
from tokvid.config_checks import at_least
from tokvid.data.clip import Split
from tokvid.data.clip_source import Skipped
from tokvid.data.code_shards.card import card
from tokvid.data.code_shards.format import (
    CARD_FILE,
    DATA_FOLDER,
    FACTS_FILE,
    FORMAT_VERSION,
    PLAN_FILE,
    UNFINISHED,
    CodecFacts,
    CodeRecord,
    ShardFacts,
    ShardsFacts,
    check_rows,
    count_clips,
    features,
    is_code_shards,
    read_facts,
    to_row,
)
from tokvid.data.code_shards.quiet import quiet
from tokvid.errors import DataError, TokvidError
from tokvid.saved_json import read_mapping


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """The shard of the clips from ``first`` up to, without, ``last`` of a split."""

    split: Split
    first: int
    last: int
    file: str

    @property
    def name(self) -> str:
        """Its file without folder and suffix."""
        return Path(self.file).stem


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """What a folder of shards is made of: ``clips`` says how many the source has a split.

    ``data`` describes the source, and differs where the clips or their captions do; it may hold what JSON can. A shard
    is made of ``shard_clips`` clips.
    """

    codec: CodecFacts
    data: dict[str, Any]
    clips: dict[Split, int]
    shard_clips: int = 1024

    def __post_init__(self) -> None:
        at_least(self, 1, "shard_clips")

    def shards(self) -> list[PlannedShard]:
        """Every shard, split by split."""
        planned: list[PlannedShard] = []
        for split, count in self.clips.items():
            firsts = range(0, count, self.shard_clips)
            planned += [
                PlannedShard(
                    split=split,
                    first=first,
                    last=min(first + self.shard_clips, count),
                    file=f"{DATA_FOLDER}/{split}-{number:05d}-of-{len(firsts):05d}.parquet",
                )
                for number, first in enumerate(firsts)
            ]
        return planned

    def identity(self) -> dict[str, Any]:
        """What must be the same in a run that goes on, as it is read back from JSON."""
        kept: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "codec": to_mapping(self.codec),
            "data": {"clips": self.clips, **self.data},
            "shard_clips": self.shard_clips,
        }
        kept = json.loads(json.dumps(kept))
        return kept


class ShardWriter:
    """The folder that the shards of one plan are written to; several processes may have one each.

    Shards stand under their names when they are whole. What was skipped and the digests wait in ``unfinished/`` until
    :meth:`finish` writes ``code_shards.json``.
    """

    def __init__(self, folder: str | Path, plan: ShardPlan) -> None:
        self.folder, self.plan = Path(folder), plan

    def begin(self, *, force: bool = False) -> None:
        """Take the folder: a new one, one that the same plan began or finished, or with ``force`` any of code shards.

        :class:`DataError` where it holds something else; nothing else than code shards is ever removed.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"{self.folder}: is a file; name a folder to write to")
        if is_code_shards(self.folder):
            if force:
                self._clear()
            else:
                self._check_same()
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise DataError(f"{self.folder}: is not empty and holds no code shards; name a new folder")
        if not self.finished:
            write_text(self.folder / PLAN_FILE, json.dumps(self.plan.identity(), indent=2) + "\n")
        else:
            shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)

    @property
    def finished(self) -> bool:
        """Whether :meth:`finish` was there before."""
        return (self.folder / FACTS_FILE).is_file()

    def missing(self) -> list[PlannedShard]:
        """The shards that are still to be written."""
        return [] if self.finished else [shard for shard in self.plan.shards() if self._written(shard) is None]

    def write(self, shard: PlannedShard, records: Sequence[CodeRecord], skipped: Sequence[Skipped] = ()) -> None:
        """Write a shard, whole or not at all; ``skipped`` are the clips of it that gave no record.

        :class:`ShapeError` or :class:`DataError` for records that are not of the plan's codec.
        """
        content = _parquet(records, self.plan.codec, self.folder / shard.file)
        with atomic_path(self.folder / shard.file) as beside:
            beside.write_bytes(content)
        facts = ShardFacts(
            file=shard.file,
            split=shard.split,
            clips=len(records),
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        state = {"shard": to_mapping(facts), "skipped": [asdict(item) for item in skipped]}
        write_text(self._state(shard), json.dumps(state, indent=2) + "\n")

    def finish(self, skipped: Sequence[Skipped] = (), made_by: Mapping[str, Any] | None = None) -> ShardsFacts:
        """Write ``code_shards.json`` and the card, once no shard is :meth:`missing`; what they say.

        ``skipped`` is what gave no clip in the first place. :class:`DataError` where a split has no record.
        """
        if self.finished:
            return read_facts(self.folder)
        shards: list[ShardFacts] = []
        lost = list(skipped)
        for planned in self.plan.shards():
            written = self._written(planned)
            if written is None:
                raise DataError(f"{self.folder / planned.file}: is not written yet; give the same command again")
            shards.append(written[0])
            lost += written[1]
        clips = count_clips(tuple(shards))
        for split, count in self.plan.clips.items():
            if not clips.get(split):
                why = f"; the last: {lost[-1].name}: {lost[-1].reason}" if lost else ""
                raise DataError(f"{self.folder}: none of the {count} clips of {split} can be encoded{why}")
        facts = ShardsFacts(
            codec=self.plan.codec,
            clips=clips,
            data=self.plan.identity()["data"],
            shard_clips=self.plan.shard_clips,
            shards=tuple(shards),
            skipped=tuple(lost),
            made_by=dict(made_by or {}),
        )
        write_text(self.folder / CARD_FILE, card(facts))
        write_text(self.folder / FACTS_FILE, json.dumps(to_mapping(facts), indent=2) + "\n")
        shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)
        return facts

    def _state(self, shard: PlannedShard) -> Path:
        return self.folder / UNFINISHED / f"{shard.name}.json"

    def _written(self, shard: PlannedShard) -> tuple[ShardFacts, list[Skipped]] | None:
        """What is known of a shard that stands there whole, or None."""
        try:
            state = read_mapping(self._state(shard), "shard")
            facts = from_mapping(ShardFacts, state["shard"])
            skipped = [from_mapping(Skipped, item) for item in state["skipped"]]
            whole = (self.folder / shard.file).stat().st_size == facts.bytes
        except (TokvidError, OSError, KeyError, TypeError):
            return None  # it is written again
        return (facts, skipped) if whole else None

    def _clear(self) -> None:
        # What the folder is known by goes last, a plan stays until there is another: then a crash leaves no riddle.
        plan = self.folder / PLAN_FILE
        states = [path for path in (self.folder / UNFINISHED).glob("*") if path != plan]
        if (self.folder / DATA_FOLDER).is_dir():
            shutil.rmtree(self.folder / DATA_FOLDER)
        for path in (*states, self.folder / CARD_FILE, self.folder / FACTS_FILE):
            path.unlink(missing_ok=True)

    def _check_same(self) -> None:
        wanted = self.plan.identity()
        there = read_mapping(self.folder / (FACTS_FILE if self.finished else PLAN_FILE), "folder of code shards")
        for key, value in wanted.items():
            if there.get(key) != value:
                raise DataError(
                    f"{self.folder}: holds shards of something else ({_difference(key, there.get(key), value)}); name"
                    " another folder, or -f to write them anew"
                )
        if self.finished:
            for shard in read_facts(self.folder).shards:
                file = self.folder / shard.file
                if not file.is_file() or file.stat().st_size != shard.bytes:
                    raise DataError(f"{file}: is missing or torn in a finished folder; -f to write all of it anew")


def _difference(key: str, there: Any, wanted: Any) -> str:
    """In which setting two plans differ, as far in as they both have one."""
    while isinstance(there, Mapping) and isinstance(wanted, Mapping):
        inner = next(inner for inner in [*wanted, *there] if there.get(inner) != wanted.get(inner))
        key, there, wanted = f"{key}.{inner}", there.get(inner), wanted.get(inner)
    return f"{key} is {str(there)[:40]}, now {str(wanted)[:40]}"


def _parquet(records: Sequence[CodeRecord], codec: CodecFacts, path: Path) -> bytes:
    """The bytes of a shard: one group of rows."""
    rows = [to_row(record, codec) for record in records]
    columns = features(codec)
    table = datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in columns}, features=columns)
    check_rows(table.with_format("arrow")[:] if rows else columns.arrow_schema.empty_table(), codec, path, codes=True)
    buffer = io.BytesIO()
    with quiet():
        table.to_parquet(buffer, batch_size=max(1, len(rows)))
    return buffer.getvalue()
