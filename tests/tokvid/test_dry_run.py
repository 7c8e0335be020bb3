"""Every shipped recipe is tried at a tiny size; a dry run finds what is wrong and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokvid.cli.main import main
from tokvid.recipe import shipped_recipes
from tokvid_tokenizers.feed import SourceFeed


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_dry_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", name, "--dry-run"]) == 0
    figures = json.loads(capsys.readouterr().out)
    lms = ("smollm2-extend", "sprites-chat", "sprites-continuous-tiny", "sprites-hybrid", "web-7b")
    refiners = ("natural-128-refine", "sprites-refine")
    if name in [*(f"lm/{lm}" for lm in lms), *(f"codec/{refiner}" for refiner in refiners)]:  # by a small model
        assert list(figures) == ["parameters_of_the_stand_in"]
    else:
        assert figures["parameters"] > 100_000
    assert not list(tmp_path.iterdir())


def test_a_trained_model_that_is_not_there_has_a_stand_in(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model={kind: trained, name: runs/not/yet}", "--template=emu3", "--num_actions=2"]
    assert main(["train", "lm/sprites-tiny", "--dry-run", *model]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["parameters_of_the_stand_in"]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("codec/ucf101-128", "--training.adversarial.weigth=1", "did you mean 'weight'"),
        ("codec/natural-128", "--data.size=[100,100]", "multiples of 8"),
        ("codec/ucf101-224", "--training.start_from=null", "needs start_from"),
        ("lm/sprites-tiny", "--model.num_heads=5", "num_heads"),
        ("codec/web-256", "--training.buckets=[{size: [250, 256]}]", "training.buckets[0]: height and width must"),
        ("codec/k600-128", "--training.steps=20000", "buckets[1] begins at step 20000 of 20000"),
    ],
)
def test_what_is_wrong_is_found(name: str, change: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", name, "--dry-run", change]) == 2
    assert words in capsys.readouterr().err


def test_every_bucket_is_tried(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures and the longest clips too, though in the run itself some of them come days later."""
    tried: list[int] = []
    choose = SourceFeed.bucket

    def noted(feed: SourceFeed, step: int) -> int:
        tried.append(choose(feed, step))
        return tried[-1]

    monkeypatch.setattr(SourceFeed, "bucket", noted)
    assert main(["train", "codec/k600-128", "--dry-run"]) == 0
    assert tried == [0, 1, 2, 3]
