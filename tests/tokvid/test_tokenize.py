"""``tokvid tokenize`` on real videos: the codes are the codec's, and nothing is lost, mixed or said twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from tests.tokenizers.lively import smallest_codec
from tests.tokvid.test_clips import config, video
from tokvid.cli.main import main
from tokvid.data.clip import Clip, Split
from tokvid.data.clips import SpriteDataConfig, open_clips, open_splits
from tokvid.data.code_shards import CodeShards
from tokvid.frames import to_model
from tokvid.recipe import load_recipe
from tokvid_tokenizers import VideoCodec, load_codec
from tokvid_tokenizers.quantizers import KLConfig

T = 5
SHAPE = ["--size", "16x16", "--frames", str(T), "--workers", "1"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def codec(tmp_path: Path) -> VideoCodec:
    made = smallest_codec()
    made.save_pretrained(tmp_path / "codec")
    return made


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Six videos of two windows each; one has actions, one is broken."""
    folder = tmp_path / "videos"
    for number in range(6):
        video(folder / f"{number}.mp4", num_frames=2 * T + 1, first=7 * number)
        (folder / f"{number}.txt").write_text(f"number {number}")
    (folder / "3.actions.json").write_text(json.dumps(list(range(2 * T))))
    (folder / "broken.mp4").write_bytes(b"")
    return folder


def tokenize(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["tokenize", *arguments, "--codec", "codec", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, codec: str = "codec") -> str:
    assert main(["tokenize", *arguments, "--codec", codec]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    lines = [line for line in streams.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def coded(codec: VideoCodec, clip: Clip) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        return codec.encode(to_model(clip.frames[None]))[0].numpy()


def test_a_folder_of_videos_becomes_codes(codec: VideoCodec, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = tokenize(capsys, str(videos), "out", *SHAPE, "--shard-clips", "3")
    assert said["codec_id"] == codec.codec_id
    # Nothing of where the videos lie gets into what is shared.
    assert said["skipped"] == [
        {"name": "broken.mp4", "reason": "broken.mp4: is empty (0 bytes); copy or download it again"}
    ]
    written = Path("out", "code_shards.json").read_text() + Path("out", "README.md").read_text()
    assert str(videos.parent) not in written and json.loads(written.partition("\n---")[0])["data"]["path"] == "videos"
    sources = dict(zip(("train", "held_out"), open_splits(config(videos, num_frames=T)), strict=True))
    names = []
    for split, source in sources.items():
        found = CodeShards("out", split)  # type: ignore[arg-type]
        clips = [clip for clip in source.load_all() if isinstance(clip, Clip)]
        assert len(found) == len(clips) == said["clips"][split]
        for record, clip in zip(map(found.__getitem__, range(len(found))), clips, strict=True):
            assert (record.name, record.caption, record.actions, record.fps) == (
                clip.name,
                clip.caption,
                clip.actions,
                clip.fps,
            )
            assert (record.num_frames, record.height, record.width) == clip.frames.shape[:3]
            assert np.array_equal(record.codes, coded(codec, clip))
            names.append(record.name)
    assert len(set(names)) == 12
    assert len(list(Path("out", "data").iterdir())) == said["shards"] > 2


def test_what_was_written_is_described_and_not_written_again(
    codec: VideoCodec, videos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tokenize(capsys, str(videos), "out", *SHAPE)
    assert main(["info", "out", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["codec_id"] == codec.codec_id and facts["codebook_size"] == codec.codebook_size
    assert {split: found["clips"] for split, found in facts["splits"].items()} == said["clips"]
    assert sum(found["actions"] for found in facts["splits"].values()) == 2
    assert facts["splits"]["train"]["grids"] == {"2x4x4": said["clips"]["train"]}
    assert sum(found["bytes"] for found in facts["splits"].values()) == said["bytes"]
    assert list(facts["skipped"]) == ["broken.mp4"]
    assert main(["info", "out"]) == 0
    assert "every shard is whole" in capsys.readouterr().out
    monkeypatch.setattr(VideoCodec, "encode", None)
    assert tokenize(capsys, str(videos), "out", *SHAPE) == said
    next(Path("out", "data").iterdir()).write_bytes(b"PAR1")
    assert main(["info", "out"]) == 2
    assert "has 4 bytes where" in capsys.readouterr().err
    assert "torn in a finished folder" in fails(capsys, str(videos), "out", *SHAPE)


def test_other_captions_are_other_data(videos: Path, codec: VideoCodec, capsys: pytest.CaptureFixture[str]) -> None:
    first = tokenize(capsys, str(videos), "out", *SHAPE)
    for name in ("0.txt", "1.txt"):
        (videos / name).write_text("changed")
    assert "-f to write them anew" in fails(capsys, str(videos), "out", *SHAPE)
    assert "data.size is [16, 16], now [8, 8]" in fails(capsys, str(videos), "out", *SHAPE, "--size", "8x8")
    assert tokenize(capsys, str(videos), "out", *SHAPE, "-f")["clips"] == first["clips"]
    captions = CodeShards("out", "train").captions() + CodeShards("out", "held_out").captions()
    assert captions.count("changed") == 4


def test_sprites_and_recipes_say_what_clips(codec: VideoCodec, capsys: pytest.CaptureFixture[str]) -> None:
    said = tokenize(capsys, "sprites", "sprites", *SHAPE, "--clips", "4")
    assert said["clips"] == {"train": 4, "held_out": 4}
    assert tokenize(capsys, "lm/sprites-tiny", "recipe", "--frames", str(T), "--workers", "1", "--clips", "3")[
        "clips"
    ] == {
        "train": 3,
        "held_out": 3,
    }
    of_recipe = load_recipe("lm/sprites-tiny")["data"]
    for folder, size, clips in (("sprites", (16, 16), 4), ("recipe", tuple(of_recipe["size"]), 3)):
        found = CodeShards(folder, "held_out")
        source = open_clips(SpriteDataConfig(size=size, num_frames=T, held_out_clips=clips), "held_out")
        for index in range(clips):
            assert found[index].caption == source.load(index).caption
            assert np.array_equal(found[index].codes, coded(codec, source.load(index)))


def test_fewer_clips_are_spread_over_a_folder(
    codec: VideoCodec, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenize(capsys, str(videos), "out", *SHAPE, "--clips", "2")
    split: Split = "train"
    names = CodeShards("out", split).names()
    assert len(names) == 2 and len({name.partition("#")[0] for name in names}) == 2


def test_many_batches_give_the_codes_of_one(
    codec: VideoCodec, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["sprites", "--clips", "9", *SHAPE]
    tokenize(capsys, command[0], "whole", *command[1:])
    monkeypatch.setattr("tokvid.cli.shard_workers._PIXELS", 2 * T * 16 * 16)
    tokenize(capsys, command[0], "parts", *command[1:])
    found = [CodeShards(name) for name in ("whole", "parts")]
    assert all(np.array_equal(found[0][index].codes, found[1][index].codes) for index in range(9))


def test_a_run_that_failed_goes_on(
    codec: VideoCodec, videos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ["--shard-clips", "2"]
    tokenize(capsys, str(videos), "whole", *SHAPE, *shards)
    encode, calls = VideoCodec.encode, []

    def encode_some(self: VideoCodec, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, *arguments, **options)

    monkeypatch.setattr(VideoCodec, "encode", encode_some)
    command = [str(videos), "out", *SHAPE, *shards]
    assert main(["tokenize", *command, "--codec", "codec"]) == 130
    assert main(["info", "out"]) == 2
    assert "not finished; give the command that began them again" in capsys.readouterr().err
    calls[:] = [1] * 3
    tokenize(capsys, *command)
    assert len(calls) == 3 + 6 - 2  # what was whole was not encoded again
    for path in sorted(Path("whole", "data").iterdir()):
        assert path.read_bytes() == Path("out", "data", path.name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "out"], "nowhere: no such folder"),
        (["nowhere.yaml", "out"], "no file and no shipped recipe"),
        (["bare.yaml", "out"], "has no section 'data'"),
        (["sprites", "out", "--size", "18x16"], "multiples of 4"),
        (["sprites", "out", "--size", "16"], "HxW"),
        (["sprites", "out", "--clips", "0"], "--clips must be at least 1"),
        (["sprites", "out", "--workers", "0"], "--workers must be at least 1"),
        (["sprites", "out", "--shard-clips", "0"], "shard_clips must be at least 1"),
        (["sprites", "out", "--fps", "0"], "fps"),
        (["sprites", "codec"], "codec: is not empty and holds no code shards"),
        (["sprites", "codec/config.json"], "is a file"),
    ],
)
def test_what_cannot_be_is_one_line(
    codec: VideoCodec, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    Path("bare.yaml").write_text("task: lm\n")
    assert words in fails(capsys, *arguments)
    assert not Path("out").exists()


def test_a_codec_without_codes_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    base = load_codec("preset:tiny").config
    VideoCodec(replace(base, quantizer=KLConfig(dim=4))).save_pretrained("continuous")
    assert "is a continuous codec and has no codes" in fails(capsys, "sprites", "out", codec="continuous")
