"""The demo as a user meets it: real processes from the command to the files, also where something is wrong."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.integration.conftest import FinishedDemo
from tests.integration.processes import SOURCES, environment, run, succeed, tokvid
from tokvid import __version__, read_video
from tokvid.cli import demo as demo_verb
from tokvid.cli.judging import judge_reconstructions
from tokvid.data.clips import materialise, open_clips
from tokvid.metrics.psnr_ssim import psnr
from tokvid.training_log import read_log
from tokvid.video import probe_video
from tokvid_lm import VideoLM
from tokvid_tokenizers import load_codec
from tokvid_tokenizers.evaluation import reconstruct

pytestmark = pytest.mark.slow

CAPTION = "a fox moves left"
SHOWN = r"language model (\d+)/(\d+)"  # a line of progress: steps done, steps in all


def test_it_ends_by_naming_its_files_and_figures(fast_demo: FinishedDemo) -> None:
    lines = fast_demo.stdout.splitlines()
    for name in ("report.html", "sheet.png", "generated", "metrics.json"):
        assert str(Path("runs/demo") / name) in lines
        assert (fast_demo.folder / name).exists()
    for figure in ("codec PSNR", "codebook usage", "loss below unigram entropy", "sprite in generated clips"):
        assert any(line.startswith(figure) for line in lines), figure
    # Quality is not judged in a fast demo.
    assert "MISSED" not in fast_demo.stdout and "reached" not in fast_demo.stdout
    assert [line for line in fast_demo.stderr.splitlines() if line.startswith("[")][-1].startswith("[6/6]")


def test_nothing_half_written_is_left(fast_demo: FinishedDemo) -> None:
    files = [path for path in fast_demo.folder.rglob("*") if path.suffix == ".tmp" or path.name.startswith("step-")]
    assert files == []


def test_the_report_is_one_file_without_a_network(fast_demo: FinishedDemo) -> None:
    page = (fast_demo.folder / "report.html").read_text(encoding="utf-8")
    bare = re.sub(r"data:[^\"']*", "", page).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert re.findall(r"https?:|@import|url\(|<script|<link", bare) == []
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert len(sources) > 16
    assert {source.partition(":")[0] for source in sources if not source.startswith("#")} == {"data"}
    for word in ("Generated from captions", "Reconstructions", "Training", "Time", __version__):
        assert word in page, word


def test_the_metrics_hold_figures_versions_and_times(fast_demo: FinishedDemo) -> None:
    metrics = json.loads((fast_demo.folder / "metrics.json").read_text(encoding="utf-8"))
    codec, lm = metrics["codec"], metrics["language_model"]
    asked, lm_asked = demo_verb.recipes(fast=True, data=None, output=Path("runs/demo"))
    grid = asked.codec.grid_for(asked.data.num_frames, *asked.data.size)
    assert codec["clips"] == asked.data.held_out_clips and codec["codes"] == codec["clips"] * grid.cells
    assert 10 < codec["psnr"] < 60 and 0 < codec["codebook_usage"] <= 1
    assert lm["clips"] == lm_asked.evaluation.clips and 0 < lm["validation_nats"]["next_token"] < math.log(100_000)
    for name in ("sprite", "direction", "all"):
        low, high = lm[name]["interval_95"]
        assert 0 <= low <= lm[name]["share"] <= high <= 1 and lm[name]["count"] == lm["clips"]
    made = metrics["provenance"]
    assert made["versions"]["tokvid"] == __version__ and "torch" in made["versions"]
    assert made["seed"] == 0 and made["command"] == "tokvid demo --fast --output runs/demo"
    seconds = metrics["seconds"]
    assert metrics["seconds_complete"] is True
    assert len(seconds) == 7 and seconds["total"] >= max(value for name, value in seconds.items() if name != "total")


def test_the_figures_of_the_codec_are_those_of_its_saved_weights(fast_demo: FinishedDemo) -> None:
    """PSNR and the oracle speak of the same reconstructions: those of the codec as it was saved."""
    metrics = json.loads((fast_demo.folder / "metrics.json").read_text(encoding="utf-8"))["codec"]
    data = demo_verb.recipes(fast=True, data=None, output=Path("runs/demo"))[0].data
    held_out = materialise(open_clips(data, "held_out"))
    shown = reconstruct(load_codec(fast_demo.folder / "codec" / "codec"), held_out.frames)
    each = [psnr(*pair) for pair in zip(held_out.frames, shown.pictures, strict=True)]
    # Another number of threads may round a pixel otherwise.
    assert metrics["psnr"] == pytest.approx(np.mean(each), abs=1e-4)
    assert {"sprite": metrics["sprite"]} == judge_reconstructions(data, held_out.captions, shown.pictures)


def test_the_videos_open_and_tell_where_they_come_from(fast_demo: FinishedDemo) -> None:
    files = sorted((fast_demo.folder / "generated").iterdir())
    assert [file.name for file in files] == [f"{number:02d}.mp4" for number in range(16)]
    captions = set()
    for file in files:
        video = read_video(file)
        assert video.frames.shape == (17, 32, 32, 3) and video.fps == 8
        made = json.loads(probe_video(file).metadata["tokvid"])
        assert made["seed"] == 0 and made["versions"]["tokvid"] == __version__
        captions.add(made["caption"])
    assert len(captions) > 8


def test_the_sheet_is_a_picture_of_clips(fast_demo: FinishedDemo) -> None:
    with Image.open(fast_demo.folder / "sheet.png") as image:
        picture = np.asarray(image.convert("RGB"))
    assert picture.shape[0] > 8 * 96 and picture.shape[1] >= 9 * 96
    assert picture.std() > 10


def test_the_saved_model_loads_where_tokvid_is_not(fast_demo: FinishedDemo, tmp_path: Path) -> None:
    folder = fast_demo.folder / "lm" / "lm"
    program = f"""
import importlib, json, os, sys
sys.path = [entry for entry in sys.path if os.path.realpath(entry) not in {[str(path) for path in SOURCES]!r}]
for name in ("tokvid.errors", "tokvid_tokenizers.codec", "tokvid_lm.video_lm"):
    try:
        importlib.import_module(name)
    except ImportError:
        continue
    raise SystemExit(name + " was found, so this would prove nothing")
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer({CAPTION!r}, return_tensors="pt")
logits = model(**inputs).logits[0, -1]
longer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
print(json.dumps([inputs["input_ids"][0].tolist(), logits.tolist(), longer.shape[1]]))
"""
    answer = succeed(run(sys.executable, "-c", program, folder, cwd=tmp_path))
    ids, logits, length = json.loads(answer.splitlines()[-1])
    lm = VideoLM.from_pretrained(folder)
    assert ids == lm.tokenizer(CAPTION)["input_ids"] and length == len(ids) + 3
    assert lm.processor.decode_text(ids) == CAPTION
    with torch.inference_mode():
        expected = lm.model(torch.tensor([ids])).logits[0, -1]
    assert len(logits) == lm.vocabulary.total_size
    torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-4, rtol=0)


def test_generate_draws_the_same_again_and_another_with_another_seed(fast_demo: FinishedDemo, tmp_path: Path) -> None:
    model = fast_demo.folder / "lm" / "lm"

    def draw(name: str, seed: int) -> np.ndarray:
        printed = succeed(tokvid("generate", CAPTION, "--model", model, "-o", name, "--seed", seed, cwd=tmp_path))
        assert printed.split() == [name]
        return read_video(tmp_path / name).frames

    first = draw("first.mp4", 3)
    assert first.shape == (17, 32, 32, 3)
    assert np.array_equal(first, draw("again.mp4", 3))
    assert not np.array_equal(first, draw("other.mp4", 4))
    made = json.loads(probe_video(tmp_path / "first.mp4").metadata["tokvid"])
    assert made["seed"] == 3 and made["model"] == "lm" and made["caption"] == CAPTION
    # Only the last part of an absolute path is written down.
    assert str(fast_demo.folder) not in json.dumps(made)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_own_videos_train_too_and_an_interrupted_demo_goes_on(own_videos: Path, tmp_path: Path) -> None:
    command = ("demo", "--fast", "--data", own_videos, "--output", "out")
    code, said = interrupt_when(lambda text: bool(re.search(SHOWN, text)), *command, cwd=tmp_path)
    assert code == 130, said
    assert said.splitlines()[-1].startswith("interrupted: stopped; the same command goes on")
    assert not (tmp_path / "out" / "report.html").exists()
    (checkpoint,) = (tmp_path / "out" / "lm").glob("step-*")
    began = int(checkpoint.name.removeprefix("step-"))
    stale = tmp_path / "out" / "generated" / "99.mp4"  # of an earlier demo that drew more
    stale.parent.mkdir()
    stale.touch()
    steps = int(re.findall(SHOWN, said)[0][1])
    assert 0 < began < steps

    done = tokvid(*command, cwd=tmp_path, threads=None)
    printed = succeed(done)
    assert "clips cannot fill a batch" in done.stderr and "batch" not in printed
    shown = [int(number) for number, _ in re.findall(SHOWN, done.stderr)]
    assert shown and min(shown) > began
    assert not re.search(r"^codec \d+/", done.stderr, re.MULTILINE), "the finished codec was trained again"
    logged = [line["step"] for line in read_log(tmp_path / "out" / "lm" / "log.jsonl")]
    assert logged == sorted(set(logged)) and logged[0] <= began and logged[-1] == steps
    # What is finished needs no checkpoints: the same command would start anew, and took minutes.
    assert not list((tmp_path / "out").rglob("step-*"))
    before = (tmp_path / "out" / "metrics.json").read_bytes()
    refused = tokvid(*command, cwd=tmp_path)
    assert (
        refused.returncode == 2 and "holds a finished demo" in refused.stderr and "-f to replace it" in refused.stderr
    )
    assert (tmp_path / "out" / "metrics.json").read_bytes() == before

    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert "sprite" not in metrics["language_model"], "there is no oracle for a user's own videos"
    assert str(tmp_path) not in json.dumps(metrics)
    captions = {path.read_text(encoding="utf-8").strip() for path in own_videos.glob("*.txt")}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert any(caption in page for caption in captions)
    videos = sorted((tmp_path / "out" / "generated").iterdir())
    assert videos and stale not in videos and read_video(videos[0]).frames.shape == (17, 32, 32, 3)


def interrupt_when(wanted: Callable[[str], bool], *arguments: object, cwd: Path) -> tuple[int, str]:
    """Start ``tokvid``, press Ctrl-C when its stderr is as wanted; the exit code and all of stderr."""
    log = cwd / "stderr.txt"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tokvid", *map(str, arguments)],
            cwd=cwd,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=environment(threads=None),
        )
        until = time.monotonic() + 600
        while process.poll() is None and not wanted(log.read_text()) and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=120)
    return code, log.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "codec/sprites-tiny", "--training.stepz=3"], ["training.stepz", "did you mean 'steps'?"]),
        (["demo", "--fast", "--data", "empty"], ["empty", "holds no video"]),
        (["demo", "--fast", "--data", "orphans"], ["1 captions have no video", "lonely.txt"]),
        (["demo", "--fast", "--data", "mute"], ["mute", "none of its", "caption", "name.txt"]),
        (["demo", "--fast", "--data", "broken"], ["broken", "gives a clip", "a.mp4"]),
        (["generate", CAPTION, "--model", "empty", "-o", "out.mp4"], ["video_lm.json", "no VideoLM"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], words: list[str], own_videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(own_videos, tmp_path / "orphans")
    (tmp_path / "orphans" / "lonely.txt").write_text("nobody", encoding="utf-8")
    shutil.copytree(own_videos, tmp_path / "mute", ignore=shutil.ignore_patterns("*.txt"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.mp4").write_bytes(b"no video at all")
    check_refused(tokvid(*arguments, cwd=tmp_path), words)
    assert not (tmp_path / "out.mp4").exists() and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([" ".join(["a fox moves left over grass and"] * 200)], ["context has", "shorten the prompt"]),
        ([CAPTION, "--size", "30x32"], ["multiples of", "30x32"]),
        ([CAPTION, "--frames", "0"], ["at least one frame", "got 0"]),
        ([CAPTION, "--frames", "4001"], ["context has", "fewer frames"]),
        ([CAPTION, "--temperature", "0"], ["temperature must be above 0"]),
    ],
)
def test_generate_refuses_what_the_model_cannot_do(
    arguments: list[str], words: list[str], fast_demo: FinishedDemo, tmp_path: Path
) -> None:
    model = fast_demo.folder / "lm" / "lm"
    check_refused(tokvid("generate", *arguments, "--model", model, "-o", "out.mp4", cwd=tmp_path), words)
    assert list(tmp_path.iterdir()) == []


def check_refused(done: subprocess.CompletedProcess[str], words: list[str]) -> None:
    """Exit code 2, nothing on stdout, one line of error with these words in it, after stages and warnings."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    *before, line = done.stderr.splitlines()
    assert line.startswith("error: ") and not [text for text in before if text.startswith("error")]
    for word in words:
        assert word in line, line


def test_showing_a_model_and_training_one_are_two_things(tmp_path: Path) -> None:
    refused = tokvid("demo", "--pretrained", "--fast", cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.endswith("leave --data and --fast out\n")
