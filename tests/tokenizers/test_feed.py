"""The batches of a run: the same from memory and from disk, of every bucket, without what does not decode."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.tokenizers.tiny_run import DATA, STEPS, assert_same_run, die, killed_at, lines, recipe
from tokvid.config import from_mapping, to_mapping
from tokvid.data.clip import Clip
from tokvid.data.clips import ClipArray, ClipSource, FolderClips, FolderDataConfig, materialise, open_splits
from tokvid.data.sprites.export import write_folder
from tokvid.data.sprites.world import SpriteWorld, SpriteWorldConfig
from tokvid.errors import CheckpointError, ConfigError, DataError
from tokvid_tokenizers.feed import BucketConfig, Feed, SourceFeed, open_feed
from tokvid_tokenizers.training import CODEC_FOLDER, train_codec
from tokvid_tokenizers.training_config import CodecRecipe

Frames = npt.NDArray[np.uint8]
VIDEOS = 14


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Fourteen videos of nine frames of 16x16: each gives one clip of five frames, or nine pictures."""
    world = SpriteWorld(SpriteWorldConfig(size=(16, 16), num_frames=9))
    write_folder(world, tmp_path / "videos", "train", VIDEOS)
    return tmp_path / "videos"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for number in range(9):
        grain = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(grain).save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path / "pictures"


def from_folder(folder: Path, output: Path, **training: Any) -> CodecRecipe:
    data = FolderDataConfig(path=str(folder), size=(16, 16), num_frames=5)
    run = recipe(output, clips="disk")
    return dataclasses.replace(run, data=data, training=dataclasses.replace(run.training, **training))


def sources(run: CodecRecipe) -> tuple[ClipSource, ClipArray]:
    train, held_out = open_splits(run.data)
    return train, materialise(held_out)


def mixed(pictures: Path) -> tuple[BucketConfig, ...]:
    """Small clips first, then the recipe's; pictures of two kinds among them."""
    return (
        BucketConfig(size=(8, 8), num_frames=9, batch_size=3, until_step=6),
        BucketConfig(from_step=4),
        BucketConfig(size=(16, 8), num_frames=1, batch_size=6, share=0.5),
        BucketConfig(num_frames=1, batch_size=5, share=0.5, pictures=str(pictures)),
    )


SHAPES = {(3, 9, 8, 8, 3), (4, 5, 16, 16, 3), (6, 1, 16, 8, 3), (5, 1, 16, 16, 3)}


def cut_short(video: Path) -> None:
    """What an interrupted copy leaves."""
    video.write_bytes(video.read_bytes()[:-600])


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("clips")]


# --- which clips make a batch ---------------------------------------------------------------------------------------


def test_batches_from_memory_are_those_that_every_recipe_has_had(
    tmp_path: Path, clips: tuple[ClipArray, ClipArray]
) -> None:
    frames = clips[0].frames
    feed = open_feed(recipe(tmp_path), clips[0])
    for step in range(9):
        order = np.random.default_rng([3, step // 2]).permutation(10)
        first = step % 2 * 4
        assert np.array_equal(feed.batch(step), frames[np.sort(order[first : first + 4])])


def test_clips_from_disk_make_the_run_that_clips_in_memory_make(folder: Path, tmp_path: Path) -> None:
    run = from_folder(folder, tmp_path / "disk")
    train, held_out = sources(run)
    memory = dataclasses.replace(
        run, output=str(tmp_path / "memory"), training=dataclasses.replace(run.training, clips="memory")
    )
    with open_feed(run, train) as from_disk, open_feed(memory, materialise(train)) as from_memory:
        for step in (0, 1, 2, 3, 11, 5, 4):
            assert np.array_equal(from_disk.batch(step), from_memory.batch(step))
    train_codec(run, train, held_out)
    train_codec(memory, materialise(train), held_out)
    weights = Path(CODEC_FOLDER, "model.safetensors")
    assert (tmp_path / "disk" / weights).read_bytes() == (tmp_path / "memory" / weights).read_bytes()
    without_count = [{k: v for k, v in line.items() if k != "skipped_clips"} for line in lines(tmp_path / "disk")]
    assert without_count == lines(tmp_path / "memory")
    assert {line["skipped_clips"] for line in lines(tmp_path / "disk")} == {0.0}


def test_sprites_are_drawn_as_they_are_needed(tmp_path: Path, clips: tuple[ClipArray, ClipArray]) -> None:
    run = recipe(tmp_path, clips="disk", buckets=(BucketConfig(), BucketConfig(size=(24, 16), num_frames=2)))
    memory = open_feed(recipe(tmp_path), clips[0])
    with open_feed(run, open_splits(DATA)[0]) as feed:
        batches = [feed.batch(step) for step in range(STEPS)]
    assert {batch.shape for batch in batches} == {(4, 5, 16, 16, 3), (4, 2, 24, 16, 3)}
    assert all(np.array_equal(b, memory.batch(n)) for n, b in enumerate(batches) if b.shape[1] == 5)


def test_every_bucket_comes_in_its_time_and_about_as_often_as_its_share(folder: Path, tmp_path: Path) -> None:
    buckets = (
        BucketConfig(until_step=3000),
        BucketConfig(num_frames=1, share=0.5),
        BucketConfig(size=(8, 8), from_step=1000, share=2.5),
    )
    run = from_folder(folder, tmp_path, steps=4000, buckets=buckets)
    with open_feed(run, open_splits(run.data)[0]) as feed:
        assert isinstance(feed, SourceFeed)
        drawn = [feed.bucket(step) for step in range(4000)]
        assert [feed.bucket(step) for step in range(50, 60)] == drawn[50:60]
    for steps, shares in (((0, 1000), (2, 1, 0)), ((1000, 3000), (2, 1, 5)), ((3000, 4000), (0, 1, 5))):
        count, total = steps[1] - steps[0], sum(shares)
        seen = Counter(drawn[slice(*steps)])
        for number, share in enumerate(shares):
            expected = count * share / total
            assert abs(seen[number] - expected) <= 4 * (expected * (1 - share / total)) ** 0.5


def test_each_bucket_has_its_shape_and_its_clips(folder: Path, pictures: Path, tmp_path: Path) -> None:
    run = from_folder(folder, tmp_path, steps=60, buckets=mixed(pictures))
    train = open_splits(run.data)[0]
    known = {
        shape[1:]: {clip.frames.tobytes() for clip in source.load_all() if isinstance(clip, Clip)}
        for shape, source in (
            ((3, 9, 8, 8, 3), train.reshaped((8, 8), 9)),
            ((4, 5, 16, 16, 3), train),
            ((6, 1, 16, 8, 3), train.reshaped((16, 8), 1)),
        )
    }
    seen: dict[tuple[int, ...], set[bytes]] = {}
    with open_feed(run, train) as feed:
        for step in range(60):
            batch = feed.batch(step)
            assert batch.shape in SHAPES and batch.dtype == np.uint8
            each = [clip.tobytes() for clip in batch]
            assert len(set(each)) == len(each) or batch.shape[1] == 1  # what stands still gives one picture twice
            seen.setdefault(batch.shape[1:], set()).update(each)
    assert {shape: seen[shape] <= clips for shape, clips in known.items()} == dict.fromkeys(known, True)
    assert len(seen[5, 16, 16, 3]) == len(train) and len(seen[1, 16, 16, 3]) == 9


def test_a_codec_is_first_measured_on_clips_that_move(folder: Path, pictures: Path, tmp_path: Path) -> None:
    run = from_folder(folder, tmp_path, buckets=mixed(pictures))
    with open_feed(run, open_splits(run.data)[0]) as feed:
        assert feed.first_look().shape == (3, 9, 8, 8, 3)


@pytest.mark.parametrize("from_memory", [True, False])
def test_processes_share_each_batch(folder: Path, pictures: Path, tmp_path: Path, from_memory: bool) -> None:
    if from_memory:
        run = from_folder(folder, tmp_path, clips="memory", batch_size=6)
        clips: ClipArray | ClipSource = materialise(open_splits(run.data)[0])
    else:
        buckets = tuple(dataclasses.replace(bucket, batch_size=6) for bucket in mixed(pictures))
        run = from_folder(folder, tmp_path, batch_size=6, buckets=buckets)
        clips = open_splits(run.data)[0]
    feeds: list[Feed] = [open_feed(run, clips, rank=rank, processes=3) for rank in range(3)]
    with open_feed(run, clips) as whole, feeds[0], feeds[1], feeds[2]:
        for step in range(STEPS):
            parts = [feed.batch(step) for feed in feeds]
            assert [len(part) for part in parts] == [2, 2, 2]
            assert np.array_equal(np.concatenate(parts), whole.batch(step))
        assert len({feed.digest for feed in (whole, *feeds)}) == 1
    with pytest.raises(ConfigError, match="a batch of 6 clips cannot be shared evenly by 4 processes"):
        open_feed(run, clips, rank=0, processes=4)


# --- a run that goes on ---------------------------------------------------------------------------------------------


def test_a_run_of_buckets_that_died_and_went_on_is_the_same_run(
    folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, stopped = (from_folder(folder, tmp_path / n, buckets=mixed(pictures)) for n in ("straight", "stopped"))
    clips = sources(straight)
    cut_short(folder / f"{clips[0].clip_name(0)}")
    train_codec(straight, *clips)
    assert sum(line["skipped_clips"] for line in lines(tmp_path / "straight")) > 0
    killed_at(monkeypatch, 6, stopped, clips)  # type: ignore[arg-type]
    assert not threads()
    fewer = dataclasses.replace(stopped, training=dataclasses.replace(stopped.training, loading_workers=1))
    train_codec(fewer, *clips, resume=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "straight")


def test_other_files_do_not_resume(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = from_folder(folder, tmp_path / "run")
    clips = sources(run)
    killed_at(monkeypatch, 6, run, clips)  # type: ignore[arg-type]
    with (folder / clips[0].clip_name(3)).open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match="the clips differ"):
        train_codec(run, *clips, resume=True)
    assert not threads()


# --- what does not decode -------------------------------------------------------------------------------------------


def test_a_clip_that_does_not_decode_is_named_counted_and_never_black(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = from_folder(folder, tmp_path / "run", log_every=1)
    train, held_out = sources(run)
    whole = {clip.name: clip.frames for clip in train.load_all() if isinstance(clip, Clip)}
    broken = [train.clip_name(index) for index in (2, 5)]
    cut_short(folder / broken[0])
    content = bytearray((folder / broken[1]).read_bytes())
    middle = content.index(b"mdat") + 4
    content[middle:] = bytes(len(content) - middle)  # as a file that was never written to the disk
    (folder / broken[1]).write_bytes(content)
    good = {frames.tobytes() for name, frames in whole.items() if name not in broken}
    with open_feed(run, train) as feed, open_feed(run, train) as other:
        counts = []
        for step in range(STEPS):
            batch = feed.batch(step)
            assert {clip.tobytes() for clip in batch} <= good
            assert {item.name for item in feed.skipped} <= set(broken)
            counts.append(len(feed.skipped))
            if step % 5 == 4:  # the one that comes in its place depends on nothing that was before
                assert np.array_equal(other.batch(step), batch) and other.skipped == feed.skipped
    assert sum(counts) > 0
    train_codec(run, train, held_out)
    assert [line["skipped_clips"] for line in lines(tmp_path / "run")] == counts
    told = [line for line in capsys.readouterr().err.splitlines() if ": skipped " in line]
    assert sorted(line.split()[3].rstrip(":") for line in told) == sorted(broken)
    assert all(line.startswith("step ") and str(folder) in line for line in told)


def test_data_that_are_gone_end_the_run_with_names(folder: Path, tmp_path: Path) -> None:
    run = from_folder(folder, tmp_path / "run")
    train, held_out = sources(run)
    for video in folder.glob("*.mp4"):
        video.write_bytes(b"gone")
    with pytest.raises(DataError, match=r"8 clips in a row do not decode \(.*\.mp4, .*\.mp4.*still there") as caught:
        train_codec(run, train, held_out)
    assert "\n" not in str(caught.value)
    assert not threads()


# --- what is loaded ahead -------------------------------------------------------------------------------------------


class Counted(ClipSource):
    """The clips of another source, and which were loaded."""

    def __init__(self, source: ClipSource) -> None:
        self.source, self.loaded = source, Counter[int]()
        self.name, self.size, self.num_frames, self.fps = source.name, source.size, source.num_frames, source.fps

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> Clip:
        self.loaded[index] += 1
        return self.source.load(index)


def test_no_more_is_loaded_ahead_than_two_batches_and_nothing_after_the_last_step(tmp_path: Path) -> None:
    train = Counted(open_splits(DATA)[0])
    with open_feed(recipe(tmp_path, clips="disk", loading_workers=2), train) as feed:
        for step in range(STEPS):
            feed.batch(step)
            assert sum(train.loaded.values()) <= 4 * min(step + 3, STEPS)
    assert sum(train.loaded.values()) == 4 * STEPS


def test_small_batches_are_loaded_further_ahead_so_that_no_thread_waits(tmp_path: Path) -> None:
    barrier = threading.Barrier(4)
    train = Counted(open_splits(DATA)[0])
    load = train.load

    def together(index: int) -> Clip:
        barrier.wait(timeout=30)
        return load(index)

    train.load = together  # type: ignore[method-assign]
    with open_feed(recipe(tmp_path, clips="disk", batch_size=1, loading_workers=4), train) as feed:
        feed.batch(0)
        assert len(threads()) == 4
        barrier.abort()


@pytest.mark.parametrize("end", ["close", "error", "interrupt"])
def test_no_thread_outlives_its_feed(folder: Path, tmp_path: Path, end: str) -> None:
    run = from_folder(folder, tmp_path)
    errors = {"close": None, "error": ValueError, "interrupt": KeyboardInterrupt}
    try:
        with open_feed(run, open_splits(run.data)[0]) as feed:
            feed.batch(0)
            assert threads()
            error = errors[end]
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert not threads()


def test_no_thread_outlives_a_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = from_folder(folder, tmp_path / "run")
    monkeypatch.setattr("tokvid_tokenizers.training.evaluate_reconstructions", lambda *arguments: die(arguments[0]))
    with pytest.raises(BaseException, match=r"^$"):
        train_codec(run, *sources(run))
    assert not threads()


# --- settings -------------------------------------------------------------------------------------------------------


def test_buckets_survive_a_file(folder: Path, pictures: Path, tmp_path: Path) -> None:
    run = from_folder(folder, tmp_path, buckets=mixed(pictures))
    assert from_mapping(CodecRecipe, to_mapping(run)) == run


@pytest.mark.parametrize(
    ("bucket", "words"),
    [
        ({"share": 0.0}, r"training\.buckets\[1\]: share must be positive"),
        ({"share": float("inf")}, "share must be finite"),
        ({"num_frames": 0}, "num_frames must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"from_step": -1}, "from_step must be at least 0"),
        ({"from_step": 5, "until_step": 5}, r"until_step must be more than from_step \(5\), got 5"),
        ({"from_step": 12}, r"buckets\[1\] begins at step 12 of 12, so never"),
        ({"pictures": "some"}, "a bucket of pictures has num_frames: 1, got None"),
        ({"size": [16, 18]}, r"training\.buckets\[1\]: height and width must be positive multiples of 4, got 16x18"),
        ({"size": [8, 8]}, r"training\.buckets\[1\]: size must be \(H, W\) of at least 16"),
        ({"frames": 1}, r"unknown key 'training\.buckets\[1\]\.frames'"),
    ],
)
def test_impossible_buckets_are_refused(tmp_path: Path, bucket: dict[str, Any], words: str) -> None:
    whole = to_mapping(recipe(tmp_path, clips="disk"))
    whole["training"]["buckets"] = [{}, bucket]
    with pytest.raises(ConfigError, match=words):
        from_mapping(CodecRecipe, whole)


@pytest.mark.parametrize(
    ("buckets", "step"),
    [
        ((BucketConfig(from_step=1),), 0),
        ((BucketConfig(until_step=11),), 11),
        ((BucketConfig(until_step=4), BucketConfig(from_step=6)), 4),
        ((BucketConfig(until_step=4), BucketConfig(from_step=2, until_step=7), BucketConfig(from_step=8)), 7),
    ],
)
def test_a_step_without_a_bucket_is_refused(tmp_path: Path, buckets: tuple[BucketConfig, ...], step: int) -> None:
    with pytest.raises(ConfigError, match=f"no bucket is active at step {step};"):
        recipe(tmp_path, clips="disk", buckets=buckets)
    recipe(tmp_path, clips="disk", buckets=(*buckets, BucketConfig(from_step=0)))


def test_buckets_want_clips_from_disk_and_each_enough_of_them(folder: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="buckets need clips: disk"):
        recipe(tmp_path, buckets=(BucketConfig(),))
    run = from_folder(folder, tmp_path, buckets=(BucketConfig(batch_size=40),))
    train, held_out = sources(run)
    assert isinstance(train, FolderClips)
    with pytest.raises(DataError, match=f"a batch needs 40 clips, the training data has {len(train)}; add clips or"):
        train_codec(run, train, held_out)
    open_feed(from_folder(folder, tmp_path, buckets=(BucketConfig(batch_size=40, num_frames=1),)), train)
    many = BucketConfig(batch_size=40, num_frames=1, pictures=str(pictures))
    with pytest.raises(DataError, match=rf"a batch needs 40 clips, {pictures} has 9"):
        open_feed(from_folder(folder, tmp_path, buckets=(many,)), train)


def test_the_wrong_kind_of_clips_is_refused(tmp_path: Path, clips: tuple[ClipArray, ClipArray]) -> None:
    with pytest.raises(ConfigError, match=r"training\.clips is 'disk': give a ClipSource, not ClipArray"):
        train_codec(recipe(tmp_path, clips="disk"), *clips)
    with pytest.raises(ConfigError, match=r"training\.clips is 'memory': give a ClipArray, not SpriteClips"):
        train_codec(recipe(tmp_path), open_splits(DATA)[0], clips[1])
