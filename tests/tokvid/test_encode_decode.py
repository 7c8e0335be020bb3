"""``tokvid encode`` and ``tokvid decode`` on real files and folders."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tokvid.cli.main import main
from tokvid.codes_file import CodesFile
from tokvid.video import Video, probe_video, read_video, write_video
from tokvid_tokenizers import load_codec

CODEC = ["--codec", "preset:tiny"]


def write(path: Path, num_frames: int = 9, seed: int = 0, size: tuple[int, int] = (16, 24)) -> Path:
    frames = np.random.default_rng(seed).integers(256, size=(num_frames, *size, 3)).astype(np.uint8)
    write_video(path, Video(frames=frames, fps=8))
    return path


def test_a_file_goes_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write(tmp_path / "clip.mp4")
    codes, again = tmp_path / "clip.tokvid", tmp_path / "again.mp4"
    assert main(["encode", str(clip), str(codes), *CODEC]) == 0
    assert re.search(r"9 frames of 16x24, [0-9.e+]+ frames/s", capsys.readouterr().out)
    facts = CodesFile(codes).facts
    assert facts.made_by["source"] == "clip.mp4" and str(tmp_path) not in json.dumps(facts.made_by)
    assert main(["decode", str(codes), str(again), *CODEC]) == 0
    info = probe_video(again)
    assert (info.num_frames, info.height, info.width) == (9, 16, 24)
    assert json.loads(info.metadata["tokvid"])["codes"] == "clip.tokvid"
    capsys.readouterr()
    assert main(["info", str(codes), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["grid"] == "3x2x3" and described["codec_id"] == facts.codec_id
    assert described["bits_a_code"] == 10 and described["bytes"] == codes.stat().st_size


def test_a_reconstruction_is_encoded_and_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write(tmp_path / "clip.mp4")
    assert main(["reconstruct", str(clip), str(tmp_path / "there.mp4"), *CODEC]) == 0
    assert "9 frames of 16x24, through" in capsys.readouterr().out
    assert main(["encode", str(clip), str(tmp_path / "clip.tokvid"), *CODEC]) == 0
    assert main(["decode", str(tmp_path / "clip.tokvid"), str(tmp_path / "again.mp4"), *CODEC]) == 0
    frames = [read_video(tmp_path / name).frames for name in ("there.mp4", "again.mp4")]
    assert np.array_equal(frames[0], frames[1])
    made_by = json.loads(probe_video(tmp_path / "there.mp4").metadata["tokvid"])
    assert made_by["reconstruction_of"] == "clip.mp4"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.mp4", "clip.mp4", "clip.tokvid", "there.mp4"]


def test_a_size_off_the_stride_is_padded_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write(tmp_path / "clip.mp4")
    assert main(["encode", str(clip), str(tmp_path / "a.tokvid"), "--size", "10x12", *CODEC]) == 0
    assert "9 frames of 10x12, padded to 16x16" in capsys.readouterr().out
    assert main(["decode", str(tmp_path / "a.tokvid"), str(tmp_path / "a.mp4"), *CODEC]) == 0
    assert probe_video(tmp_path / "a.mp4").width == 12


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 5)])
def test_pictures_of_a_pixel_go_there_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: tuple[int, int]
) -> None:
    clip, codes, again = write(tmp_path / "clip.mp4", size=size), tmp_path / "a.tokvid", tmp_path / "a.mp4"
    assert main(["encode", str(clip), str(codes), *CODEC]) == 0
    padded = "x".join(str(-(-side // 8) * 8) for side in size)
    assert f"9 frames of {size[0]}x{size[1]}, padded to {padded}" in capsys.readouterr().out
    assert main(["decode", str(codes), str(again), *CODEC]) == 0
    info = probe_video(again)
    assert (info.num_frames, info.height, info.width) == (9, *size)


def test_tiles_give_the_codes_of_whole_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    clip, tile = tmp_path / "clip.mp4", ["--tile", "32x40"]
    write_video(clip, Video(frames=rng.integers(256, size=(9, 70, 96, 3)).astype(np.uint8), fps=8))
    for name, options in (("whole", []), ("tiles", tile), ("seams", [*tile, "--halo", "0"])):
        assert main(["encode", str(clip), str(tmp_path / f"{name}.tokvid"), *options, *CODEC]) == 0
    whole, tiles, seams = (CodesFile(tmp_path / f"{name}.tokvid") for name in ("whole", "tiles", "seams"))
    assert (whole.read() != tiles.read()).mean() < 1e-3 and "halo" not in tiles.facts.made_by
    assert seams.facts.made_by["tile"] == "32x40" and seams.facts.made_by["halo"] == 0
    assert main(["decode", str(tiles.path), str(tmp_path / "tiles.mp4"), *tile, *CODEC]) == 0
    assert main(["reconstruct", str(clip), str(tmp_path / "again.mp4"), *tile, *CODEC]) == 0
    frames = [read_video(tmp_path / name).frames for name in ("tiles.mp4", "again.mp4")]
    assert frames[0].shape == (9, 70, 96, 3) and np.array_equal(frames[0], frames[1])


def test_a_folder_keeps_its_tree_and_names_what_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in" / "a.mp4")
    write(tmp_path / "in" / "deep" / "b.mkv", seed=1)
    (tmp_path / "in" / "broken.mp4").write_bytes(b"")
    (tmp_path / "in" / "note.txt").write_text("no video")
    command = ["encode", str(tmp_path / "in"), str(tmp_path / "out"), *CODEC]
    assert main(command) == 2
    streams = capsys.readouterr()
    assert "broken.mp4" in streams.err and "2 done, 0 skipped, 1 failed" in streams.err
    made = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.tokvid"))
    assert made == ["a.tokvid", "deep/b.tokvid"]
    assert main(command) == 2
    assert "0 done, 2 skipped, 1 failed" in capsys.readouterr().err
    assert main(["decode", str(tmp_path / "out"), str(tmp_path / "back"), *CODEC]) == 0
    assert probe_video(tmp_path / "back" / "deep" / "b.mp4").num_frames == 9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode", "none.mp4", "a.tokvid"], "none.mp4 does not exist"),
        (["encode", "clip.mp4", "a.mp4"], "must end in .tokvid"),
        (["encode", "clip.mp4", "there.tokvid"], "-f to overwrite"),
        (["encode", "clip.mp4", "folder"], "name the file to write"),
        (["encode", "empty", "out"], "holds no file of"),
        (["encode", "twins", "out"], "would both become"),
        (["encode", "twins", "clip.mp4"], "is a file"),
        (["encode", "clip.mp4", "a.tokvid", "--size", "10"], "HxW"),
        (["encode", "clip.mp4", "a.tokvid", "--fps", "0"], "fps"),
        (["encode", "clip.mp4", "a.tokvid", "--tile", "32x20"], "multiples of 8, got 32x20"),
        (["encode", "clip.mp4", "a.tokvid", "--tile", "16x16"], "make them 24x24 or more"),
        (["encode", "clip.mp4", "a.tokvid", "--halo", "2"], "give their size too"),
        (["reconstruct", "clip.mp4", "a.mp4", "--tile", "32"], "HxW"),
        (["decode", "there.tokvid", "a.mp4"], "torn"),
        (["decode", "clip.mp4", "a.mp4"], "torn"),
        (["decode", "there.tokvid", "a.gif"], "must end in .mp4"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "clip.mp4")
    (tmp_path / "there.tokvid").write_bytes(b"no codes")
    for name in ("folder", "empty", "twins"):
        (tmp_path / name).mkdir()
    for name in ("a.mp4", "a.mkv"):
        (tmp_path / "twins" / name).write_bytes(b"")
    assert main([*arguments, *CODEC]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error


CODEC_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-8]), "model.safetensors is torn"),
    "no weights": (lambda path: path.unlink(), "model.safetensors is missing"),
    "missing": (lambda path: edit(path, lambda t: t.pop("encoder.head.bias")), "1 missing (first: encoder.head.bias)"),
    "extra": (lambda path: edit(path, lambda t: t.update(odd=np.zeros(1, np.float32))), "1 unknown (first: odd)"),
    "of another shape": (
        lambda path: edit(path, lambda t: t.update({"encoder.head.bias": np.zeros(9, np.float32)})),
        "1 of another shape (first: encoder.head.bias)",
    ),
    "NaN": (
        lambda path: edit(path, lambda t: t.update({"encoder.head.bias": np.full(4, np.nan, np.float32)})),
        "'encoder.head.bias' holds NaN",
    ),
}


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("damage", CODEC_DAMAGES)
def test_a_damaged_codec_is_one_line_of_every_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    load_codec("preset:tiny").save_pretrained("codec")
    write(Path("clip.mp4"))
    assert main(["encode", "clip.mp4", "clip.tokvid", "--codec", "codec"]) == 0
    change, words = CODEC_DAMAGES[damage]
    change(Path("codec") / "model.safetensors")
    capsys.readouterr()
    for verb in ("encode clip.mp4 a.tokvid", "decode clip.tokvid a.mp4", "reconstruct clip.mp4 a.mp4"):
        assert main([*verb.split(), "--codec", "codec"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and words in error
    assert not list(tmp_path.glob("a.*"))


CODES_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is torn"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "is torn"),
    "out of range": (lambda path: path.write_bytes(path.read_bytes()[:-2] + b"\xff\x0f"), "its codebook has 1000"),
    "of another type": (
        lambda path: refit(path, lambda codes: codes.astype(np.int32)),
        "rows are I32 [3, 8], expected U8 [t,8]",
    ),
    "without a shape": (lambda path: refit(path, lambda codes: codes[0, 0]), "rows are U8 []"),
    "of another K": (lambda path: say(path, num_codebooks=2), "expected U8 [t,15]"),
    "of another codebook": (lambda path: say(path, codebook_size=1024), "codebook_size is 1024, its codec's 1000"),
    "of another codec": (lambda path: say(path, codec_id="tokvid-0"), "was encoded with codec tokvid-0, this one is"),
}


def refit(path: Path, change: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.generic]]) -> None:
    with safe_open(path, framework="np") as file:
        codes, metadata = file.get_tensor("codes"), file.metadata()
    save_file({"codes": np.array(change(codes))}, path, metadata=metadata)


def say(path: Path, **facts: object) -> None:
    with safe_open(path, framework="np") as file:
        codes, said = file.get_tensor("codes"), json.loads(file.metadata()["tokvid"])
    save_file({"codes": codes}, path, metadata={"tokvid": json.dumps(said | facts)})


@pytest.mark.parametrize("damage", CODES_DAMAGES)
def test_damaged_codes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("clip.mp4"))
    assert main(["encode", "clip.mp4", "clip.tokvid", *CODEC]) == 0
    change, words = CODES_DAMAGES[damage]
    change(Path("clip.tokvid"))
    capsys.readouterr()
    assert main(["decode", "clip.tokvid", "a.mp4", *CODEC]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: clip.tokvid ") and error.count("\n") == 1 and words in error
    assert not Path("a.mp4").exists()
