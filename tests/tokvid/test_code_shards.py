"""Folders of code shards: what is written is read again, by others too, and what is damaged is named."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokvid.data.clip import Split
from tokvid.data.clip_source import Skipped
from tokvid.data.code_shards import CodecFacts, CodeRecord, CodeShards, ShardPlan, ShardsFacts, ShardWriter, verify
from tokvid.errors import CheckpointError, DataError, ShapeError, TokvidError

CODEC = CodecFacts(codec_id="tokvid-a", codebook_size=300, num_codebooks=2, temporal_stride=4, spatial_stride=8)


def record(number: int, codec: CodecFacts = CODEC, num_frames: int = 5, cells: tuple[int, int] = (2, 3)) -> CodeRecord:
    """A clip whose codes are those of its number alone."""
    t = 1 + -(-(num_frames - 1) // codec.temporal_stride)
    rng = np.random.default_rng(number)
    return CodeRecord(
        codes=rng.integers(codec.codebook_size, size=(codec.num_codebooks, t, *cells)),
        name=f"clip-{number}",
        caption=f"clip {number}" if number % 2 else "",
        actions=tuple(range(num_frames - 1)) if number % 3 else (),
        fps=8.0 + number,
        num_frames=num_frames,
        height=cells[0] * codec.spatial_stride,
        width=cells[1] * codec.spatial_stride,
    )


def plan(clips: int = 7, held_out: int = 2, codec: CodecFacts = CODEC, **changes: Any) -> ShardPlan:
    counts: dict[Split, int] = {"train": clips, "held_out": held_out}
    return ShardPlan(codec=codec, clips=counts, **{"data": {"kind": "none"}, "shard_clips": 3} | changes)


def fill(
    folder: Path, of: ShardPlan, records: Callable[[int], CodeRecord] = record, *, most: int | None = None
) -> ShardWriter:
    writer = ShardWriter(folder, of)
    writer.begin()
    for shard in writer.missing()[:most]:
        writer.write(shard, [records(number) for number in range(shard.first, shard.last)])
    return writer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven clips in three shards, two held out in one."""
    fill(tmp_path / "shards", plan()).finish()
    return tmp_path / "shards"


def shards(folder: Path, split: Split = "train") -> CodeShards:
    return CodeShards(folder, split, cache_dir=folder.with_name("cache"))


def same(found: CodeRecord, wanted: CodeRecord) -> bool:
    names = ("name", "caption", "actions", "fps", "num_frames", "height", "width", "grid")
    equal = all(getattr(found, name) == getattr(wanted, name) for name in names)
    return equal and found.codes.dtype == np.int64 and np.array_equal(found.codes, wanted.codes)


# --- there and back -------------------------------------------------------------------------------------------------


@st.composite
def contents(draw: st.DrawFn) -> tuple[ShardPlan, list[CodeRecord]]:
    stride = st.integers(1, 9)
    codec = CodecFacts(
        codec_id=draw(st.text("tokvid-0123456789é/", min_size=1, max_size=9)),
        codebook_size=draw(st.sampled_from([1, 2, 256, 257, 65536, 65537, 2**31])),
        num_codebooks=draw(st.integers(1, 3)),
        temporal_stride=draw(stride),
        spatial_stride=draw(stride),
    )
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)

    def one() -> CodeRecord:
        num_frames, height, width = draw(st.integers(1, 9)), draw(st.integers(1, 30)), draw(st.integers(1, 30))
        t = -((1 - num_frames) // codec.temporal_stride) + 1
        shape = (codec.num_codebooks, t, -(-height // codec.spatial_stride), -(-width // codec.spatial_stride))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        actions = st.lists(st.integers(0, 2**31 - 1), min_size=num_frames - 1, max_size=num_frames - 1)
        return CodeRecord(
            codes=rng.integers(codec.codebook_size, size=shape),
            name=draw(text),
            caption=draw(text),
            actions=tuple(draw(st.one_of(st.just([]), actions))),
            fps=draw(st.floats(1e-3, 1e3)),
            num_frames=num_frames,
            height=height,
            width=width,
        )

    records = [one() for _ in range(draw(st.integers(2, 7)))]
    held_out = draw(st.integers(1, len(records) - 1))
    return plan(len(records) - held_out, held_out, codec, shard_clips=draw(st.integers(1, 4))), records


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contents())
def test_records_of_any_shape_come_back(content: tuple[ShardPlan, list[CodeRecord]]) -> None:
    of, records = content
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "shards")
        writer = ShardWriter(path, of)
        writer.begin()
        first_of: dict[Split, int] = {"train": 0, "held_out": of.clips["train"]}
        for shard in writer.missing():
            start = first_of[shard.split]
            writer.write(shard, records[start + shard.first : start + shard.last])
        facts = writer.finish()
        assert facts == verify(path)[0] and facts.clips == of.clips
        for split, start in first_of.items():
            found, wanted = shards(path, split), records[start : start + of.clips[split]]
            assert len(found) == len(wanted) and found.codec == of.codec
            assert all(same(found[index], item) for index, item in enumerate(wanted))
            assert found.names() == [item.name for item in wanted]
            assert found.captions() == [item.caption for item in wanted]
            assert found.lengths().tolist() == [item.codes.size for item in wanted]
            assert found.grids().tolist() == [list(item.codes.shape[1:]) for item in wanted]


def test_clips_of_different_grids_lie_in_one_folder(tmp_path: Path) -> None:
    sizes = [(1, (2, 3)), (5, (2, 3)), (5, (4, 4))]
    mixed = [record(number, num_frames=sizes[number % 3][0], cells=sizes[number % 3][1]) for number in range(7)]
    fill(tmp_path / "shards", plan(), lambda number: mixed[number]).finish()
    found = shards(tmp_path / "shards")
    assert all(same(found[number], mixed[number]) for number in range(7))
    summary = verify(tmp_path / "shards")[1]["train"]
    assert summary.grids == {"1x2x3": 3, "2x2x3": 2, "2x4x4": 2}
    assert summary.codes == sum(item.codes.size for item in mixed)
    assert summary.pixels == sum(item.num_frames * item.height * item.width for item in mixed)
    assert (summary.clips, summary.captions, summary.actions) == (7, 3, 4)
    assert summary.bytes == sum(file.stat().st_size for file in (tmp_path / "shards" / "data").glob("train-*"))


def test_datasets_reads_them_without_us(folder: Path) -> None:
    cache = str(folder.with_name("cache"))
    files = {split: str(folder / "data" / f"{split}-*.parquet") for split in ("train", "held_out")}
    by_files = datasets.load_dataset("parquet", data_files=files, cache_dir=cache)
    by_card = datasets.load_dataset(str(folder), cache_dir=cache)
    assert by_card.num_rows == {"train": 7, "held_out": 2}
    for split in ("train", "held_out"):
        assert by_files[split][:] == by_card[split][:]
        for index, row in enumerate(by_files[split]):
            codes = np.reshape(row["codes"], (row["num_codebooks"], row["t"], row["h"], row["w"]))
            assert np.array_equal(codes, record(index).codes) and row["actions"] == list(record(index).actions)
            assert row["codec_id"] == "tokvid-a" and row["caption"] == record(index).caption
    streamed = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    assert [row["name"] for row in streamed] == [record(number).name for number in range(7)]


def test_the_card_shows_code_that_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "tokvid-a" in text and "| train | 7 |" in text
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder.with_name("cache"))
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert np.array_equal(names["codes"], record(0).codes)


@pytest.mark.parametrize(("size", "code_type"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_codes_take_the_smallest_type(tmp_path: Path, size: int, code_type: str) -> None:
    codec = CodecFacts(codec_id="x", codebook_size=size, num_codebooks=1, temporal_stride=4, spatial_stride=8)
    fill(tmp_path, plan(1, 1, codec), lambda number: record(number, codec)).finish()
    schema = pq.read_schema(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert schema.field("codes").type == pa.list_(getattr(pa, code_type)())


def test_names_with_signs_that_patterns_have_are_names(tmp_path: Path) -> None:
    path = tmp_path / ".hidden [a-z]*" / "what?"
    fill(path, plan()).finish()
    assert same(shards(path)[6], record(6))


def test_an_open_split_can_be_sent_to_another_process(folder: Path) -> None:
    found = shards(folder)
    content = pickle.dumps(found)
    assert len(content) < 10_000
    assert same(pickle.loads(content)[4], record(4))


def test_a_model_of_another_codec_is_refused(folder: Path) -> None:
    shards(folder).check_codec("tokvid-a")
    with pytest.raises(DataError, match=r"hold codes of tokvid-a, the model speaks tokvid-b: tokenize the data again"):
        shards(folder).check_codec("tokvid-b")


def test_a_digest_follows_the_content(folder: Path, tmp_path: Path) -> None:
    digest = shards(folder).digest()
    assert len(digest) == 64 and digest != shards(folder, "held_out").digest()
    fill(tmp_path / "again", plan(data={"kind": "other"})).finish()
    assert shards(tmp_path / "again").digest() == digest
    fill(tmp_path / "other", plan(), lambda number: record(number + (number == 6))).finish()
    assert shards(tmp_path / "other").digest() != digest


@pytest.mark.parametrize("index", [-1, 7])
def test_there_is_no_clip_beyond_the_last(folder: Path, index: int) -> None:
    with pytest.raises(IndexError, match="clips 0 to 6 of train"):
        shards(folder)[index]


# --- stopped and taken up -------------------------------------------------------------------------------------------


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}


@pytest.mark.parametrize("written", [0, 1, 3])
def test_a_run_that_stopped_goes_on_with_what_is_missing(folder: Path, tmp_path: Path, written: int) -> None:
    path = tmp_path / "stopped"
    fill(path, plan(), most=written)
    assert (path / "unfinished").is_dir()
    with pytest.raises(DataError, match="not finished; give the command that began them again"):
        CodeShards(path)
    with pytest.raises(DataError, match="is not written yet"):
        ShardWriter(path, plan()).finish()
    again = ShardWriter(path, plan())
    again.begin()
    assert len(again.missing()) == 4 - written
    fill(path, plan()).finish()
    assert content_of(path) == content_of(folder)
    assert not (path / "unfinished").exists()
    # what is finished is left as it is
    before = (path / "code_shards.json").read_bytes()
    assert ShardWriter(path, plan()).missing() == []
    fill(path, plan(), lambda number: pytest.fail("a clip was asked for")).finish(made_by={"somebody": "else"})
    assert (path / "code_shards.json").read_bytes() == before


@pytest.mark.parametrize("harm", ["state", "torn state", "shard", "torn shard"])
def test_a_shard_that_is_not_whole_is_written_again(tmp_path: Path, harm: str) -> None:
    fill(tmp_path, plan(), most=2)
    wanted = content_of(tmp_path)
    path = tmp_path / (
        "unfinished/train-00001-of-00003.json" if "state" in harm else "data/train-00001-of-00003.parquet"
    )
    if "torn" in harm:
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    writer = ShardWriter(tmp_path, plan())
    assert next(shard.name for shard in writer.missing()) == "train-00001-of-00003"
    fill(tmp_path, plan()).finish()
    assert content_of(tmp_path).items() >= wanted.items()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codec": CodecFacts(**{**vars(CODEC), "codec_id": "tokvid-b"})}, "codec.codec_id is tokvid-a, now tokvid-b"),
        ({"data": {"kind": "none", "size": [8, 8]}}, r"data\.size is None, now \[8, 8\]"),
        ({"clips": 8}, r"data\.clips\.train is 7, now 8"),
        ({"shard_clips": 4}, "shard_clips is 3, now 4"),
    ],
)
def test_a_folder_of_something_else_is_kept(
    tmp_path: Path, finished: bool, changes: dict[str, Any], words: str
) -> None:
    writer = fill(tmp_path, plan(), most=None if finished else 1)
    if finished:
        writer.finish()
    before = content_of(tmp_path)
    other = ShardWriter(tmp_path, plan(**changes))
    with pytest.raises(DataError, match=f"something else \\({words}\\).*-f to write them anew"):
        other.begin()
    assert content_of(tmp_path) == before
    other.begin(force=True)
    assert not (tmp_path / "data").exists() and len(other.missing()) == len(other.plan.shards())


def test_what_is_no_folder_of_shards_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "novel.txt").write_text("Once")
    for force in (False, True):
        with pytest.raises(DataError, match="not empty and holds no code shards"):
            ShardWriter(tmp_path, plan()).begin(force=force)
    with pytest.raises(DataError, match="is a file"):
        ShardWriter(tmp_path / "unfinished" / "novel.txt", plan()).begin(force=True)
    assert (tmp_path / "unfinished" / "novel.txt").read_text() == "Once"


def test_what_was_skipped_is_named_and_an_empty_shard_is_one(tmp_path: Path) -> None:
    writer = fill(tmp_path / "shards", plan(), most=0)
    for shard in writer.missing():
        lost = shard.split == "train" and shard.first == 3
        skipped = [Skipped(f"clip-{number}", "is broken") for number in range(3, 6)] if lost else []
        writer.write(shard, [record(n) for n in range(shard.first, shard.last) if not lost], skipped)
    facts = writer.finish([Skipped("z.mp4", "is too short")])
    assert [item.name for item in facts.skipped] == ["z.mp4", "clip-3", "clip-4", "clip-5"]
    assert facts.clips == {"train": 4, "held_out": 2}
    assert [shards(tmp_path / "shards")[index].name for index in range(4)] == ["clip-0", "clip-1", "clip-2", "clip-6"]
    assert verify(tmp_path / "shards")[1]["train"].clips == 4


def test_a_split_without_a_clip_is_refused(tmp_path: Path) -> None:
    writer = fill(tmp_path, plan(), most=0)
    for shard in writer.missing():
        writer.write(shard, [], [Skipped("clip-0", "is broken")])
    with pytest.raises(DataError, match="none of the 7 clips of train can be encoded; the last: clip-0: is broken"):
        writer.finish()


# --- what is wrong is named -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "error"),
    [
        (np.full((2, 2, 2, 3), 300), ShapeError),
        (np.full((2, 2, 2, 3), -1), ShapeError),
        (np.zeros((1, 2, 2, 3), np.int64), DataError),
        (np.zeros((2, 3, 2, 3), np.int64), DataError),
        (np.zeros((2, 2, 2, 4), np.int64), DataError),
    ],
)
def test_codes_that_the_codec_does_not_have_are_not_written(
    tmp_path: Path, codes: np.ndarray[Any, Any], error: type[TokvidError]
) -> None:
    kept = {name: getattr(record(0), name) for name in ("name", "fps", "num_frames", "height", "width")}
    with pytest.raises(error, match="clip-0"):
        fill(tmp_path, plan(), lambda number: CodeRecord(codes=codes, **kept))
    assert not list(tmp_path.glob("data/*"))
    with pytest.raises(ShapeError, match=r"expected codes \[K,t,h,w\]"):
        CodeRecord(codes=codes[0], **kept)


def rewrite(folder: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """Another content of the second shard, which ``code_shards.json`` then names."""
    path = folder / "data" / "train-00001-of-00003.parquet"
    buffer = io.BytesIO()
    pq.write_table(change(pq.read_table(path)), buffer)
    path.write_bytes(buffer.getvalue())
    facts = json.loads((folder / "code_shards.json").read_text())
    facts["shards"][1] |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (folder / "code_shards.json").write_text(json.dumps(facts))
    return path


def with_column(name: str, values: Sequence[Any]) -> Callable[[pa.Table], pa.Table]:
    """Other ``values`` in a column, of the type that it has."""

    def change(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index(name)
        return table.set_column(index, table.schema.field(name), [pa.array(values, table.schema.field(name).type)])

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            with_column("t", [2, 3, 2]),
            r"record 1 \(clip-4\) must have the latent frames of its frames, got num_frames 5, t 3",
        ),
        (with_column("width", [24, 25, 24]), r"record 1 \(clip-4\) must have the cells of its pixels.*width 25"),
        (with_column("h", [2, 2, 0]), r"record 2 \(clip-5\) must have a size of at least 1"),
        (with_column("num_codebooks", [2, 2, 1]), "must have 2 codebooks, got num_codebooks 1"),
        (with_column("fps", [8.0, float("nan"), 8.0]), "must have a rate above 0"),
        (with_column("actions", [[], [0, 1, -2, 3], []]), "has an action below 0, -2"),
        (with_column("actions", [[], [1, 2, 3], []]), "must have an action between any two frames, or none"),
        (
            with_column("codec_id", ["tokvid-a", "tokvid-a", "tokvid-b"]),
            "must be of codec tokvid-a, got codec_id tokvid-b",
        ),
        (with_column("codes", [[0] * 24, [0] * 23, [0] * 24]), r"must have num_codebooks\*t\*h\*w codes"),
        (with_column("codes", [[0] * 24, None, [0] * 24]), "has an empty place in column 'codes'"),
        (with_column("codes", [[0] * 24, [0] * 23 + [None], [0] * 24]), "has an empty place in column 'codes'"),
        (with_column("caption", ["", None, ""]), "has an empty place in column 'caption'"),
        (lambda table: table.slice(1), "holds 2 clips, 3 by code_shards.json"),
        (lambda table: table.drop_columns(["caption"]), "must have a column 'caption' of string, got none"),
        (lambda table: table.append_column("more", table["t"]), "has columns that no code shard has: more"),
        (
            lambda table: table.set_column(0, "name", table["t"]),
            "must have a column 'name' of string, got int32",
        ),
    ],
)
def test_a_shard_that_contradicts_itself_is_named(
    folder: Path, change: Callable[[pa.Table], pa.Table], words: str
) -> None:
    path = rewrite(folder, change)
    for read in (lambda: verify(folder), lambda: shards(folder)):
        with pytest.raises(DataError, match=words) as error:
            read()
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert len(shards(folder, "held_out")) == 2


def test_codes_beyond_the_codebook_are_found(folder: Path) -> None:
    path = rewrite(folder, with_column("codes", [[0] * 24, [0] * 20 + [300] * 4, [0] * 24]))
    with pytest.raises(DataError, match=r"record 1 \(clip-4\) has codes beyond 299") as error:
        verify(folder)
    assert str(path) in str(error.value)
    found = shards(folder)  # codes are looked at when they are asked for
    assert found[5].codes.max() == 0
    with pytest.raises(DataError, match=r"clip 4 of train \(clip-4\) has code 300, its codebook 300"):
        found[4]


def test_features_of_a_strange_file_are_not_used(folder: Path) -> None:
    # datasets would make pictures of the codes, by what the file says of itself
    features = {"info": {"features": {"codes": {"_type": "Image"}}}}
    rewrite(folder, lambda table: table.replace_schema_metadata({"huggingface": json.dumps(features)}))
    assert same(shards(folder)[4], record(4))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), r"has \d+ bytes where \d+ were written"),
        (
            lambda path: path.write_bytes(b"PAR1" + bytes(path.stat().st_size - 8) + b"PAR1"),
            "cannot be read as Parquet",
        ),
        (lambda path: path.write_bytes(bytes(300) + path.read_bytes()[300:]), "cannot be read as Parquet"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, harm: Callable[[Path], Any], words: str) -> None:
    path = folder / "data" / "train-00001-of-00003.parquet"
    harm(path)
    for read in (lambda: verify(folder), lambda: shards(folder)):
        with pytest.raises(DataError, match=words) as error:
            read()
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_a_file_that_was_exchanged_is_found(folder: Path) -> None:
    path = folder / "data" / "train-00001-of-00003.parquet"
    content = bytearray(path.read_bytes())
    content[content.rindex(b"parquet-cpp")] ^= 1  # the name of the program that wrote it
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00001-of-00003\.parquet: is not the file that was written"):
        verify(folder)


def test_a_file_mended_under_its_name_is_read_anew(folder: Path) -> None:
    path = folder / "data" / "train-00001-of-00003.parquet"
    whole = path.read_bytes()
    rewrite(folder, with_column("caption", ["bad", "bad", "bad"]))
    facts = (folder / "code_shards.json").read_text()
    assert shards(folder)[4].caption == "bad"
    shutil.copy(path, folder / "spare")
    path.write_bytes((folder / "spare").read_bytes().replace(b"bad", b"odd"))
    assert (folder / "code_shards.json").read_text() == facts and shards(folder)[4].caption == "odd"
    assert whole != path.read_bytes()


def test_a_shard_that_nobody_named_is_found(folder: Path) -> None:
    shutil.copy(folder / "data" / "train-00001-of-00003.parquet", folder / "data" / "train-old.parquet")
    with pytest.raises(DataError, match=r"train-old\.parquet: code_shards\.json does not name this shard"):
        verify(folder)


def damage(facts: dict[str, Any], place: str, value: object) -> dict[str, Any]:
    node: Any = facts
    *parents, last = [int(key) if key.isdecimal() else key for key in place.split(".")]
    for key in parents:
        node = node[key]
    node[last] = value
    return facts


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("format_version", 2, "reads code shards of format 1, got 2; update tokvid"),
        ("clips.train", 8, "its splits have"),
        ("codec.codebook_size", 0, "codebook_size must be at least 1"),
        ("codec.codebook_size", 70_000, "must have a column 'codes' of list<.*uint32>, got list<.*uint16>"),
        ("codec.codebook_size", "many", "expected int"),
        ("shards.1.file", "data/../../train-00001-of-00003.parquet", "a shard of 'train' has another name"),
        ("shards.1.file", "data/held_out-00001-of-00003.parquet", "a shard of 'train' has another name"),
        ("shards.1.clips", None, "expected int"),
        ("more", 1, "unknown key 'more'"),
        ("skipped", [{"name": "a"}], "'reason'|reason"),
    ],
)
def test_facts_that_are_not_ours_are_one_line(folder: Path, place: str, value: object, words: str) -> None:
    path = folder / "code_shards.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()), place, value)))
    with pytest.raises(DataError, match=words) as error:
        shards(folder)
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"code_shards\.json is missing"):
        CodeShards(tmp_path)
    with pytest.raises(DataError, match="has no clips of split 'test'"):
        CodeShards(folder, "test")  # type: ignore[arg-type]
    (folder / "code_shards.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        CodeShards(folder)


def test_facts_come_back_from_json(folder: Path) -> None:
    facts, _ = verify(folder)
    assert isinstance(facts, ShardsFacts) and facts.shard_clips == 3
    assert [(shard.split, shard.clips) for shard in facts.shards] == [
        ("train", 3),
        ("train", 3),
        ("train", 1),
        ("held_out", 2),
    ]
