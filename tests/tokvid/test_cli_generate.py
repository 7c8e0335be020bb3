"""``tokvid generate`` draws as the model was evaluated, and writes down how it drew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.lm.tiny import build_model, build_tokenizer
from tokvid import read_video
from tokvid.cli import main as command
from tokvid.config import to_mapping
from tokvid.video import probe_video
from tokvid_lm import VideoLM
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.video_settings import VideoSettings
from tokvid_tokenizers import load_codec


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm") / "model"
    lm = VideoLM.extend(build_model("llama"), codec=load_codec("preset:tiny"), tokenizer=build_tokenizer())
    sampling = (OWN, Sampling(mode="maskgit", steps=2))
    lm.settings = VideoSettings(sampling=sampling, num_frames=9, height=16, width=24, fps=6.0)
    lm.save_pretrained(folder)
    return folder


OWN = Sampling(guidance_scale=2.0, temperature=0.5, top_k=7, top_p=0.8)
SIZE = ("--frames", "5", "--size", "16x16")


def draw(saved: Path, file: Path, *flags: str) -> tuple[dict[str, Any], np.ndarray]:
    assert command.main(["generate", "a cat", "--model", str(saved), "-o", str(file), *SIZE, *flags]) == 0
    sampling: dict[str, Any] = made_by(file)["sampling"]
    return sampling, read_video(file).frames


def made_by(file: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(probe_video(file).metadata["tokvid"])
    return facts


def test_the_settings_are_those_of_the_model_and_flags_override(saved: Path, tmp_path: Path) -> None:
    sampling, frames = draw(saved, tmp_path / "own.mp4")
    assert sampling == to_mapping(OWN)
    flags = ("--guidance", "2", "--temperature", "0.5", "--top-k", "7", "--top-p", "0.8")
    assert np.array_equal(draw(saved, tmp_path / "said.mp4", *flags)[1], frames)
    flags = ("--guidance", "1", "--temperature", "2", "--top-k", "0", "--top-p", "1", "--seed", "4")
    sampling, other = draw(saved, tmp_path / "other.mp4", *flags)
    assert sampling == to_mapping(Sampling(temperature=2.0, seed=4))
    assert not np.array_equal(other, frames)
    sampling, masked = draw(saved, tmp_path / "masked.mp4", "--mode", "maskgit", "--steps", "3")
    assert sampling == to_mapping(Sampling(mode="maskgit", steps=3))
    assert not np.array_equal(masked, frames)


def test_a_clip_is_like_those_that_the_model_learned_from(saved: Path, tmp_path: Path) -> None:
    file = tmp_path / "cat.mp4"
    assert command.main(["generate", "a cat", "--model", str(saved), "-o", str(file)]) == 0
    facts = probe_video(file)
    assert (read_video(file).frames.shape, facts.fps) == ((9, 16, 24, 3), 6.0)
    assert (made_by(file)["dtype"], made_by(file)["compiled"]) == ("float32", False)
    assert (
        command.main(["generate", "a cat", "--model", str(saved), "-o", str(tmp_path / "fast.mp4"), "--fps", "9"]) == 0
    )
    assert probe_video(tmp_path / "fast.mp4").fps == 9.0


def test_settings_without_a_use_are_refused(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "a cat", "--model", str(saved), "-o", str(tmp_path / "cat.mp4"), "--steps", "3"]
    assert command.main(arguments) == 2
    assert "steps and choice_temperature are for the masked modes" in capsys.readouterr().err


@pytest.mark.slow
def test_compiled_steps_draw_the_same_file(saved: Path, tmp_path: Path) -> None:
    _, frames = draw(saved, tmp_path / "plain.mp4")
    assert np.array_equal(draw(saved, tmp_path / "compiled.mp4", "--compile")[1], frames)
    assert made_by(tmp_path / "compiled.mp4")["compiled"]


def test_the_file_tells_its_caption_and_where_it_comes_from_but_no_folder(saved: Path, tmp_path: Path) -> None:
    draw(saved, tmp_path / "cat.mp4", "--seed", "4")
    made = made_by(tmp_path / "cat.mp4")
    assert (made["caption"], made["model"], made["seed"]) == ("a cat", "model", 4)
    assert made["codec"].startswith("tokvid-") and "caption_sha256" not in made
    assert str(tmp_path) not in json.dumps(made) and str(saved.parent) not in json.dumps(made)


@pytest.mark.parametrize(
    ("caption", "file", "flags", "words"),
    [
        ("a cat", "cat.gif", (), "cannot write '.gif'"),
        ("a cat", "cat", (), "cannot write 'a file without suffix'"),
        ("a cat", "cat.mp4", ("--fps", "0"), "frames a second, got 0.0"),
        ("a cat", "cat.mp4", ("--fps", "nan"), "frames a second, got nan"),
        ("a cat", "cat.mp4", ("--candidates", "0"), "--candidates: candidates must be at least 1, got 0"),
        ("a c\udce4t", "cat.mp4", (), "the caption's character 4 is no UTF-8 text"),
    ],
)
def test_what_cannot_be_written_is_refused_before_a_model_is_loaded(
    caption: str, file: str, flags: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [caption, "--model", str(tmp_path / "no model is there"), "-o", str(tmp_path / file)]
    assert command.main(["generate", *arguments, *flags]) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("error: ") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_a_model_the_one_that_comes_with_tokvid_draws(tmp_path: Path) -> None:
    file = tmp_path / "apple.mp4"
    assert command.main(["generate", "an apple moves left over grass", "--mode", "frame", "-o", str(file)]) == 0
    frames = read_video(file).frames
    assert frames.shape == (17, 32, 32, 3)
    red, green = frames[..., 0].astype(int), frames[..., 1].astype(int)
    assert 0.5 < float((green > red).mean()) < 0.98  # grass, and something red on it
    assert made_by(file)["model"] == "tokvid-sprites-lm" and made_by(file)["refinement"] is None
    hybrid = tmp_path / "hybrid.mp4"
    drawing = ("--mode", "frame", "--hybrid", "-o", str(hybrid))
    assert command.main(["generate", "an apple moves left over grass", *drawing]) == 0
    apart = np.abs(read_video(hybrid).frames.astype(int) - frames).mean()
    assert 0.3 < float(apart) < 12  # the same clip, drawn otherwise
    drew = made_by(hybrid)["refinement"]
    assert drew["solver"] == "heun" and len(drew["head_sha256"]) == 64
