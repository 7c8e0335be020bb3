"""``tokvid evaluate``: its files, its figures twice the same, and what it says where something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tokvid.cli.main import main
from tokvid.video import Video, write_video


def test_sprites_are_measured_the_same_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "preset:tiny", "sprites", "--size", "32x32", "--frames", "5", "--clips", "3", "--x264"]
    found = []
    for name in ("a", "b"):
        assert main([*command, "-o", str(tmp_path / name), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    figures = found[0]
    wanted = {"psnr", "ssim", "flicker", "efflite_distance", "efflite_frechet", "codebook_usage", "bits_per_pixel"}
    assert wanted <= set(figures) and figures["clips"] == 3
    assert figures["bits_per_pixel"] == pytest.approx(10 * 2 * 4 * 4 / (5 * 32 * 32))
    rows = [json.loads(line) for line in (tmp_path / "a" / "clips.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == [f"held_out-{n:06d}" for n in range(3)]
    assert np.mean([row["psnr"] for row in rows]) == pytest.approx(figures["psnr"])
    assert "Worst clips" in (tmp_path / "a" / "report.html").read_text()
    facts = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    assert facts["figures"] == figures and facts["versions"]["tokvid"]
    assert len(facts["x264"]) == 8 and "PSNR over rate" in (tmp_path / "a" / "report.html").read_text()
    assert main([*command, "-o", str(tmp_path / "a")]) == 2
    assert "-f to overwrite" in capsys.readouterr().err


def test_clips_in_which_nothing_moves_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        picture = np.full((6, 32, 32, 3), 40 * number, np.uint8)
        write_video(tmp_path / "still" / f"{number}.mp4", Video(frames=picture, fps=8))
    shape = ["--size", "32x32", "--frames", "5", "--fps", "8", "-o", str(tmp_path / "out")]
    assert main(["evaluate", "preset:tiny", str(tmp_path / "still"), *shape]) == 0
    assert "no efflite_frechet: it is of motion, and nothing moves in these clips" in capsys.readouterr().err


def test_a_folder_is_measured_whole_and_what_fails_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        frames = np.random.default_rng(number).integers(256, size=(20, 16, 16, 3)).astype(np.uint8)
        write_video(tmp_path / "in" / f"{number}.mp4", Video(frames=frames, fps=8))
    (tmp_path / "in" / "broken.mp4").write_bytes(b"")
    command = ["evaluate", "preset:tiny", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    assert main([*command, "--size", "8x8", "--frames", "5", "--clips", "6"]) == 0
    streams = capsys.readouterr()
    assert (caplog.text + streams.err).count("skipped broken.mp4: ") == 1, "once"
    assert "no ssim: pictures of 8x8" in streams.err
    assert "report.html" in streams.out
    facts = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert facts["figures"]["clips"] == 6 and facts["skipped"] == ["broken.mp4"]
    clips, videos = (
        [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("clips", "videos")
    )
    assert [(row["name"], row["clips"]) for row in videos] == [(f"{number}.mp4", 2) for number in range(3)]
    for row in videos:
        its = [clip["psnr"] for clip in clips if clip["name"].startswith(row["name"])]
        assert row["psnr"] == pytest.approx(np.mean(its))
    assert "Every video" in (tmp_path / "out" / "report.html").read_text()
    assert "ssim" not in facts["figures"] and str(tmp_path) not in json.dumps(facts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere"),
        (["sprites", "--size", "30x30"], "multiples of 8"),
        (["sprites", "--clips", "0"], "--clips must be at least 1"),
        (["sprites", "--lpips", "none.pth", "none.pth"], "none.pth"),
        (["sprites", "--text", "novel.txt"], "--text is for a language model"),
        (["sprites", "--mode", "frame"], "--mode is for a language model"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["evaluate", "preset:tiny", *arguments, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error
    assert not (tmp_path / "out").exists()
