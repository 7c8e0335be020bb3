"""``tokvid evaluate`` of a language model: its files, its figures twice the same, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.lm.tiny import build_model, build_tokenizer
from tokvid.cli.main import main
from tokvid.data.clips import FolderDataConfig, open_clips
from tokvid.data.sprites.verdicts import judge_captions
from tokvid.video import Video, write_video
from tokvid_lm import VideoLM
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.video_settings import VideoSettings
from tokvid_lm.vocabulary import MODES
from tokvid_tokenizers import load_codec

SIZE = {"num_frames": 5, "height": 16, "width": 16, "fps": 8.0, "latent_frames": 2}


def save(folder: Path, **settings: Any) -> Path:
    lm = VideoLM.extend(build_model("llama"), codec=load_codec("preset:tiny"), tokenizer=build_tokenizer())
    lm.settings = VideoSettings(**settings)
    lm.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sampling = tuple(Sampling(mode=mode, steps=2) for mode in MODES)
    return save(tmp_path_factory.mktemp("lm") / "model", sampling=sampling, captions=True, **SIZE)


def evaluate(saved: Path, data: str, output: Path, *flags: str) -> dict[str, Any]:
    assert main(["evaluate", str(saved), data, "-o", str(output), "--clips", "3", "--completed", "2", *flags]) == 0
    facts: dict[str, Any] = json.loads((output / "evaluation.json").read_text())
    return facts


def without_seconds(figures: dict[str, Any]) -> dict[str, Any]:
    plain = {name: without_seconds(value) if isinstance(value, dict) else value for name, value in figures.items()}
    return {name: value for name, value in plain.items() if not name.startswith("seconds")}


def test_sprites_are_measured_the_same_twice(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [evaluate(saved, "sprites", tmp_path / name) for name in ("a", "b")]
    figures = found[0]["figures"]
    assert without_seconds(figures) == without_seconds(found[1]["figures"])
    assert set(figures["bits"]) == {"unigram", *MODES, "caption"} and min(figures["bits"].values()) > 0
    assert set(figures["drawn"]) == set(MODES)
    for drawn in figures["drawn"].values():
        assert {"seconds", "seconds_alone", "diversity", "efflite_frechet", "sprite", "direction", "all"} <= set(drawn)
        assert drawn["sprite"]["count"] == 3
    # Two latent frames are too short to interpolate; given cells that come later are seen by maskgit alone.
    assert set(figures["completed"]) == {*(f"continuation, {mode}" for mode in MODES), "inpainting, maskgit"}
    assert "interpolation" in found[0]["left_out"] and figures["captions"]["sprite"]["count"] == 3
    rows = [json.loads(line) for line in (tmp_path / "a" / "clips.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == [f"held_out-{n:06d}" for n in range(3)]
    assert all({"written", *MODES} <= set(row) for row in rows)
    page = (tmp_path / "a" / "report.html").read_text()
    assert all(f"Drawn: {mode}" in page for mode in MODES) and "Completed" in page and "Captions" in page
    streams = capsys.readouterr()
    assert "drawn.frame.seconds_alone" in streams.out and "no interpolation: " in streams.err


def test_the_best_of_candidates_is_measured_and_refused_before_anything_is(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = evaluate(saved, "sprites", tmp_path / "two", "--mode", "frame", "--candidates", "2")
    assert facts["figures"]["drawn"]["frame"]["candidates"] == 2
    assert (
        evaluate(saved, "sprites", tmp_path / "one", "--mode", "frame")["figures"]["drawn"]["frame"]["candidates"] == 1
    )
    blind = save(tmp_path / "model", **SIZE)
    capsys.readouterr()
    for model, data, count, said in (
        (str(blind), "sprites", "2", "this model was not trained to caption: use candidates 1"),
        (str(saved), "sprites", "0", "--candidates must be at least 1, got 0"),
        (str(saved), "dialogues", "0", "--candidates has no use for dialogues"),
        ("preset:tiny", "sprites", "0", "--candidates is for a language model"),
    ):
        assert main(["evaluate", model, data, "-o", str(tmp_path / "none"), "--candidates", count]) == 2
        assert said in capsys.readouterr().err


def test_a_folder_is_measured_without_an_oracle_in_the_mode_asked_for(tmp_path: Path) -> None:
    model = save(tmp_path / "model", sampling=(Sampling(), Sampling(mode="frame", steps=2)), **SIZE)
    for number in range(3):
        frames = np.random.default_rng(number).integers(256, size=(5, 16, 16, 3)).astype(np.uint8)
        write_video(tmp_path / "in" / f"{number}.mp4", Video(frames=frames, fps=8))
        (tmp_path / "in" / f"{number}.txt").write_text("a b c", encoding="utf-8")
    facts = evaluate(model, str(tmp_path / "in"), tmp_path / "out", "--mode", "frame", "--all")
    assert facts["figures"]["clips"] == 3
    assert set(facts["figures"]["drawn"]) == {"frame"} and "sprite" not in facts["figures"]["drawn"]["frame"]
    assert set(facts["figures"]["completed"]) == {"continuation, frame"}
    assert {"captions", "inpainting", "interpolation"} <= set(facts["left_out"])
    assert str(tmp_path) not in json.dumps(facts)


def test_a_clip_without_a_caption_has_one_candidate_unless_more_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save(tmp_path / "model", sampling=(Sampling(mode="frame", steps=2, candidates=2),), captions=True, **SIZE)
    for number in range(3):
        frames = np.random.default_rng(number).integers(256, size=(5, 16, 16, 3)).astype(np.uint8)
        write_video(tmp_path / "in" / f"{number}.mp4", Video(frames=frames, fps=8))
    (tmp_path / "in" / "0.txt").write_text("a b c", encoding="utf-8")
    facts = evaluate(model, str(tmp_path / "in"), tmp_path / "out", "--all")
    assert facts["figures"]["drawn"]["frame"]["candidates"] == 2
    capsys.readouterr()
    flags = ("--all", "--candidates", "3")
    assert main(["evaluate", str(model), str(tmp_path / "in"), "-o", str(tmp_path / "none"), *flags]) == 2
    assert "prompt 2 of 3 is empty or not text alone: use candidates 1" in capsys.readouterr().err


def test_of_a_folder_the_videos_that_a_training_holds_out_are_measured(tmp_path: Path) -> None:
    model = save(tmp_path / "model", **SIZE)
    for number in range(12):
        frames = np.random.default_rng(number).integers(256, size=(5, 16, 16, 3)).astype(np.uint8)
        write_video(tmp_path / "in" / f"{number}.mp4", Video(frames=frames, fps=8))
        (tmp_path / "in" / f"{number}.txt").write_text("a b c", encoding="utf-8")
    facts = evaluate(model, str(tmp_path / "in"), tmp_path / "out", "--clips", "12")
    config = FolderDataConfig(path=str(tmp_path / "in"), size=(16, 16), num_frames=5)
    held_out = open_clips(config, "held_out")
    names = [json.loads(line)["name"] for line in (tmp_path / "out" / "clips.jsonl").read_text().splitlines()]
    assert 0 < len(names) < 12 and names == [held_out.load(number).name for number in range(len(held_out))]
    assert facts["figures"]["clips"] == len(names)


def test_a_model_of_many_shapes_is_measured_on_the_one_asked_for(tmp_path: Path) -> None:
    model = save(tmp_path / "model", sampling=(Sampling(mode="maskgit", steps=2),))
    facts = evaluate(model, "sprites", tmp_path / "out", "--size", "16x16", "--frames", "8", "--fps", "12")
    assert set(facts["figures"]["completed"]) == {
        "continuation, maskgit",
        "interpolation, maskgit",
        "inpainting, maskgit",
    }
    assert facts["clips"] == "3 of 8 frames of 16x16"


def test_bits_are_of_a_code_also_where_codes_are_digits(tmp_path: Path) -> None:
    """A model that knows nothing of codes needs log2(1,000) bits for each."""
    folder = tmp_path / "model"
    digits = VideoLM.extend(
        build_model("llama"), codec=load_codec("preset:tiny"), tokenizer=build_tokenizer(), factors=(10, 10, 10)
    )
    torch.nn.init.zeros_(digits.model.get_output_embeddings().weight)  # type: ignore[union-attr]
    digits.settings = VideoSettings(sampling=(Sampling(), Sampling(mode="maskgit", steps=2)), **SIZE)
    digits.save_pretrained(folder)
    bits = evaluate(folder, "sprites", tmp_path / "out")["figures"]["bits"]
    assert bits["next_token"] == pytest.approx(math.log2(1000)) == bits["maskgit"]


def test_a_text_is_measured_before_and_after(saved: Path, tmp_path: Path) -> None:
    base, text = tmp_path / "base", tmp_path / "text.txt"
    build_model("llama").save_pretrained(base)
    text.write_text("call me ishmael. " * 100, encoding="utf-8")
    flags = ("--mode", "next_token", "--text", str(text), "--base", str(base))
    found = evaluate(saved, "sprites", tmp_path / "out", *flags)["figures"]["text_perplexity"]
    assert found["now"] == pytest.approx(found["before"], rel=1e-4) and found["now"] > 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sprites", "--base", "somewhere"], "say --text FILE too"),
        (["sprites", "--text", "nowhere.txt"], "cannot read the text nowhere.txt"),
        (["sprites", "--x264"], "--x264 measures a codec"),
        (["sprites", "--completed", "0"], "must be at least 1"),
        (["sprites", "--mode", "magic"], "magic"),
        (["sprites", "--size", "32x32"], "trained on clips of 5 frames of 16x16, these have 5 of 32x32"),
        (["sprites", "--fps", "12"], "trained at 8 frames a second, these clips have 12"),
        (["nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    saved: Path, arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(saved), *arguments, "--clips", "2", "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_an_empty_text_is_not_passed_over(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").touch()
    arguments = ["evaluate", str(saved), "sprites", "--clips", "2", "-o", str(tmp_path / "out")]
    assert main([*arguments, "--text", str(tmp_path / "text.txt")]) == 2
    assert "got a text of 0" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_captions_are_held_against_each_other() -> None:
    said = [
        "a fox moves left over grass",
        "a fox moves left over grass",
        "a fox moves left",
        "a zebra",
        "a car and a fox stay still",
    ]
    meant = [
        "the little fox drifts leftwards on grass",
        "a fox goes up over sand",
        "one car moves left",
        "a fox rests",
        "the fox is resting and a car sits still",
    ]
    found = judge_captions(meant, said).figures()
    assert {name: (part["right"], part["count"]) for name, part in found.items()} == {
        "sprite": (3, 5),
        "direction": (3, 5),
        "both": (2, 5),
        "background": (1, 2),
    }
