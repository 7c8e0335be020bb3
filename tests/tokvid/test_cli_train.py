"""``tokvid train`` trains, measures and judges: what it prints on stdout and keeps in ``metrics.json``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tokvid.tiny_recipes import CODEC, DATA, MODEL, TRAINING
from tokvid.cli import main as command
from tokvid.data.sprites import SpriteWorld, SpriteWorldConfig
from tokvid.data.sprites.export import write_folder

RIGHT = {"share", "interval_95", "right", "count"}

Train = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """What ``tokvid train`` printed, and the folder of its run."""

    printed: dict[str, Any]
    folder: Path

    @property
    def kept(self) -> dict[str, Any]:
        metrics: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))
        return metrics


def recipe(place: Path, task: str, **sections: Any) -> Path:
    """A recipe file of a run of a second, which writes into ``place/task``."""
    content: dict[str, Any] = {"task": task, "output": str(place / task), "data": DATA, "training": TRAINING}
    path = place / f"{task}.yaml"
    path.write_text(yaml.safe_dump(content | sections), encoding="utf-8")
    return path


def lm_recipe(place: Path, **sections: Any) -> Path:
    parts: dict[str, Any] = {"codec": str(place / "codec" / "codec"), "model": MODEL, "evaluation": {"clips": 3}}
    return recipe(place, "lm", **parts | sections)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


def run(capsys: pytest.CaptureFixture[str], path: Path, *flags: str) -> Run:
    code = command.main(["train", str(path), *flags])
    said = capsys.readouterr()
    assert code == 0, said.err
    return Run(printed=json.loads(said.out), folder=path.with_suffix(""))


def test_a_codec_is_measured_and_judged(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, recipe(place, "codec", codec=CODEC))
    assert done.printed["codec"] == str(place / "codec" / "codec")
    assert done.printed["clips"] == 4 and done.printed["psnr"] > 0 and 0 < done.printed["codebook_usage"] <= 1
    assert set(done.printed["sprite"]) == RIGHT and done.printed["sprite"]["count"] == 4
    kept = done.kept
    assert kept.pop("provenance")["seed"] == 0
    assert kept == {name: value for name, value in done.printed.items() if name != "codec"}


def test_a_language_model_is_drawn_from_and_judged_without_its_clips_in_memory(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise AssertionError("all frames of a split were in memory at once")

    if not (place / "codec" / "codec").exists():
        run(capsys, recipe(place, "codec", codec=CODEC))
    monkeypatch.setattr("tokvid.cli.clips.materialise", fail)
    done = run(capsys, lm_recipe(place))
    assert done.printed["model"] == str(place / "lm" / "lm")
    assert done.printed["clips"] == 3 and done.printed["clips_per_second"] > 0
    for name in ("sprite", "direction", "all"):
        assert set(done.printed[name]) == RIGHT and done.printed[name]["count"] == 3
    assert done.printed["validation_nats"]["next_token"] > 0
    kept = done.kept
    assert kept.pop("provenance")["seed"] == 0
    assert kept == {name: value for name, value in done.printed.items() if name != "model"}


def test_more_clips_than_are_held_out_are_refused_before_anything_is_done(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lm_recipe(place, evaluation={"clips": 5}, output=str(place / "never"))
    assert command.main(["train", str(path)]) == 2
    said = capsys.readouterr()
    refused = "evaluation.clips asks for 5 held-out captions, data.held_out_clips has 4: lower one or raise the other"
    assert said.err == f"error: {refused}\n"
    assert said.out == "" and not (place / "never").exists()


def test_a_folder_of_videos_has_no_oracle_so_nothing_is_drawn(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    write_folder(SpriteWorld(SpriteWorldConfig(size=(16, 16), num_frames=5)), videos, "train", 8)
    data = {"kind": "folder", "path": str(videos), "size": [16, 16], "num_frames": 5}
    path = lm_recipe(place, codec="preset:tiny", data=data, output=str(tmp_path / "lm"), evaluation={"clips": 99})
    assert command.main(["train", str(path)]) == 0
    said = capsys.readouterr()
    assert set(json.loads(said.out)) == {
        "model",
        "validation_nats",
        "unigram_nats_per_code",
        "share_below_unigram",
    }
    assert "to train on: " in said.err


def test_a_codec_of_clips_on_the_disk_is_that_of_clips_in_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    write_folder(SpriteWorld(SpriteWorldConfig(size=(16, 16), num_frames=5)), videos, "train", 12)
    data = {"kind": "folder", "path": str(videos), "size": [16, 16], "num_frames": 5}
    printed = {}
    for clips in ("memory", "disk"):
        (tmp_path / clips).mkdir()
        path = recipe(tmp_path / clips, "codec", codec=CODEC, data=data, training=TRAINING | {"clips": clips})
        printed[clips] = run(capsys, path).printed
    folders = [Path(figures.pop("codec")) for figures in printed.values()]
    assert printed["disk"] == printed["memory"]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
