"""The stages of a demo in one process, at a size of seconds; the command itself is tested in tests/integration."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tokvid.tiny_recipes import CODEC, DATA, MODEL, TRAINING
from tokvid.cli.clips import load_splits
from tokvid.cli.demo_run import fit_context, run_demo, time_figure
from tokvid.config import from_mapping
from tokvid.data.sprites import SpriteWorld, SpriteWorldConfig
from tokvid.data.sprites.export import write_folder
from tokvid.errors import DataError
from tokvid_lm.building import build_lm
from tokvid_lm.code_clips import code_clips
from tokvid_lm.documents import Documents
from tokvid_lm.training_config import LMRecipe
from tokvid_tokenizers import VideoCodec
from tokvid_tokenizers.training_config import CodecRecipe


def recipes(output: Path, data: dict[str, Any] = DATA) -> tuple[CodecRecipe, LMRecipe]:
    codec = {"task": "codec", "output": str(output / "codec"), "data": data, "codec": CODEC, "training": TRAINING}
    lm = {"task": "lm", "output": str(output / "lm"), "data": data, "model": MODEL, "training": TRAINING}
    lm |= {"codec": str(output / "codec" / "codec"), "evaluation": {"clips": 4}}
    return from_mapping(CodecRecipe, codec), from_mapping(LMRecipe, lm)


def test_an_interrupted_demo_tells_the_time_of_all_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **settings: object) -> None:
        time.sleep(0.3)
        raise KeyboardInterrupt

    began = time.perf_counter()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        patch.setattr("tokvid_lm.training.train_lm", stop)
        run_demo(*recipes(tmp_path), output=tmp_path, fast=True)
    first = time.perf_counter() - began
    kept = json.loads((tmp_path / "stages.json").read_text(encoding="utf-8"))
    assert kept["seconds"]["train the language model"] >= 0.3

    began = time.perf_counter()
    assert run_demo(*recipes(tmp_path), output=tmp_path, fast=True) == 0
    second = time.perf_counter() - began
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    seconds = metrics["seconds"]
    assert metrics["seconds_complete"] is True
    # The second run does not train the codec again: those seconds are the first one's.
    assert seconds["train the codec"] >= kept["seconds"]["train the codec"]
    assert seconds["train the language model"] > 0.3
    assert max(first, second) < seconds["total"] <= first + second + 0.01
    assert not (tmp_path / "stages.json").exists() and not list(tmp_path.rglob("step-*"))


@pytest.fixture
def own_videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    write_folder(SpriteWorld(SpriteWorldConfig(size=(16, 16), num_frames=5)), folder, "train", 8)
    return folder


def folder_data(folder: Path) -> dict[str, Any]:
    return {"kind": "folder", "path": str(folder), "size": [16, 16], "num_frames": 5}


def write_caption(folder: Path, number: int, caption: str) -> str:
    """Give a video another caption; returns the video's name."""
    path = sorted(folder.glob("*.txt"))[number]
    path.write_text(caption, encoding="utf-8")
    return path.with_suffix(".mp4").name


def test_a_caption_that_is_far_too_long_is_named_before_a_codec_is_trained(own_videos: Path, tmp_path: Path) -> None:
    name = write_caption(own_videos, 3, "".join(chr(0x4E00 + 7 * n) for n in range(2500)))
    output = tmp_path / "out"
    with pytest.raises(DataError, match=rf"the caption of {name} takes \d+ ids, .*at most 4096 ids .*shorten"):
        run_demo(*recipes(output, folder_data(own_videos)), output=output, fast=True)
    assert not output.exists()


def test_the_positions_are_those_that_the_longest_caption_needs(
    own_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codec_recipe, lm_recipe = recipes(tmp_path, folder_data(own_videos))
    clips, held_out = load_splits(codec_recipe.data)
    assert fit_context(lm_recipe, codec_recipe, clips, held_out) is lm_recipe
    name = write_caption(own_videos, 3, "".join(chr(0x100 + 7 * n) for n in range(90)))
    clips, held_out = load_splits(codec_recipe.data)
    fitted = fit_context(lm_recipe, codec_recipe, clips, held_out)
    positions = fitted.model.max_positions  # type: ignore[union-attr]
    assert f"the caption of {name} is long: the language model gets {positions} positions" in capsys.readouterr().err
    # Exactly as many as are needed: the documents themselves say so, which keep room for their end.
    codec = VideoCodec(codec_recipe.codec)
    coded = code_clips(codec, clips)
    lm = build_lm(fitted, codec, coded.captions)
    documents = [Documents(lm.processor, part) for part in (coded, code_clips(codec, held_out))]
    for each in documents:
        each.check_context(positions)
    with pytest.raises(DataError, match=f"takes {positions} ids"):
        documents[0].check_context(positions - 1)


@pytest.mark.parametrize(
    ("seconds", "complete", "judged", "value", "reached"),
    [
        (600.0, True, True, "10.0 minutes", True),
        (780.0, True, True, "13.0 minutes", False),
        (600.0, False, True, "at least 10.0 minutes (it was killed and went on)", None),
        (780.0, False, True, "at least 13.0 minutes (it was killed and went on)", False),
        (780.0, True, False, "13.0 minutes", None),
    ],
)
def test_a_time_is_judged_where_it_is_known(
    seconds: float, complete: bool, judged: bool, value: str, reached: bool | None
) -> None:
    figure = time_figure(seconds, complete=complete, judged=judged)
    assert (figure.value, figure.reached, bool(figure.goal)) == (value, reached, judged)
