"""Cards: every number is a run's, nothing of the machine is told, and a run without numbers is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lm.tiny import build_model, build_tokenizer
from tests.tokenizers.lively import smallest_codec
from tokvid.errors import CheckpointError, ModelError
from tokvid.hub_card import Run, numbers, read_run
from tokvid_lm import VideoLM
from tokvid_lm.card import lm_card
from tokvid_tokenizers import load_codec
from tokvid_tokenizers.card import codec_card


def write_run(folder: Path, metrics: dict[str, Any], recipe: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "recipe.json").write_text(json.dumps({"task": "codec", "output": "x"} if recipe is None else recipe))
    return folder


def test_numbers_are_those_of_nested_figures_and_nothing_else() -> None:
    figures = {
        "psnr": 20.5,
        "oracle": {"sprite_right": 0.5, "worst": "apple", "more": {"n": 3}},
        "ok": True,
        "bad": None,
    }
    assert dict(numbers({**figures, "odd": float("nan")})) == {
        "psnr": 20.5,
        "oracle, sprite right": 0.5,
        "oracle, more, n": 3.0,
    }


def test_a_card_is_metadata_and_what_was_measured(tmp_path: Path) -> None:
    recipe = {
        "seed": 1,
        "data": {"path": "/srv/me/clips", "other": ["C:\\\\me\\\\film.mp4", "codec/x"]},
        "output": "/srv/out",
    }
    run = read_run(write_run(tmp_path / "run", {"psnr": 20.5}, recipe))
    text = codec_card("org/fine", smallest_codec(0), run=run, license="apache-2.0")
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "tokvid",
        "tags": ["tokvid", "video-codec", "video-tokenizer"],
        "license": "apache-2.0",
    }
    assert "# fine\n" in body and "| psnr | 20.5 |" in body and 'load_codec("org/fine")' in body
    assert "/srv" not in text and "path: clips" in text and "film.mp4" in text and "codec/x" in text
    assert "not evaluated" in body.lower()


def test_without_a_run_nothing_is_claimed() -> None:
    lm = VideoLM.extend(build_model("llama"), codec=load_codec("preset:tiny"), tokenizer=build_tokenizer())
    text = lm_card("org/lm", lm)
    assert "Not evaluated." in text and "state no licence" in text
    assert yaml.safe_load(text.split("---\n", 2)[1])["pipeline_tag"] == "text-to-video"


@pytest.mark.parametrize("metrics", [{}, {"provenance": {"seed": 3}}, {"psnr": None, "note": "good"}])
def test_a_run_without_numbers_is_refused(metrics: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no numbers, and a card is to say how good a model is"):
        read_run(write_run(tmp_path / "run", metrics))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no recipe\.json, and a card is to say how good a model is"):
        read_run(tmp_path)
    folder = write_run(tmp_path / "run", {"psnr": 1.0})
    (folder / "metrics.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"metrics\.json is not JSON"):
        read_run(folder)


def test_a_run_tells_its_machine_and_versions(tmp_path: Path) -> None:
    made_by = {"command": ["tokvid", "train", "x"], "versions": {"torch": "2"}, "machine": {"cores": 2}, "seed": 0}
    run = read_run(write_run(tmp_path / "run", {"psnr": 1.0, "provenance": made_by}))
    assert run == Run(
        recipe={"task": "codec"},
        figures={"psnr": 1.0},
        command="tokvid train x",
        versions={"torch": "2"},
        machine={"cores": 2},
    )
