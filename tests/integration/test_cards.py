"""What the cards of the models that come with tokvid say, said by their commands again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.integration.processes import succeed, tokvid
from tokvid.hub import shipped_models
from tokvid.shipped import hub_cards_folder
from tokvid_tokenizers import load_codec

pytestmark = pytest.mark.slow
MEGABYTE = 1_000_000


def quick_look(model: str) -> tuple[str, dict[str, str]]:
    """The command of a card's quick look, and its table."""
    card = (hub_cards_folder() / model / "README.md").read_text(encoding="utf-8")
    _, _, section = card.partition("### A quick look\n")
    command = re.search(r"`tokvid ([^`]+)`", section)
    assert command is not None
    return command[1], dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section.partition("\n## ")[0], re.MULTILINE))


def test_the_language_model(tmp_path: Path) -> None:
    command, table = quick_look("tokvid-sprites-lm")
    arguments = command.split()
    stdout = succeed(tokvid(*arguments, "--output", "there", cwd=tmp_path, threads=None))
    for name in ("report.html", "sheet.png", "generated", "metrics.json"):
        assert str(Path("there") / name) in stdout.splitlines() and (tmp_path / "there" / name).exists()
    metrics = json.loads((tmp_path / "there" / "metrics.json").read_text(encoding="utf-8"))
    report = (tmp_path / "there" / "report.html").read_text(encoding="utf-8")
    for section in ("Drawn: frame", "Hybrid: frame", "Completed", "Captions", "Talk"):
        assert f"{section}</h2>" in report, section
    assert len(list((tmp_path / "there" / "generated").glob("*.mp4"))) == metrics["clips"]
    assert set(table) == {*(f"{mode}, right" for mode in metrics["right"]), *metrics["gain_db"]}
    # Another processor rounds otherwise, and one code that is drawn otherwise changes its clip.
    for mode, right in metrics["right"].items():
        said, _, count = table[f"{mode}, right"].partition(" of ")
        assert int(count) == metrics["clips"] and abs(right - int(said)) <= 1, mode
    for task, gain in metrics["gain_db"].items():
        assert gain == pytest.approx(float(table[task].removesuffix(" dB")), abs=1.0), task


def test_the_codec(tmp_path: Path) -> None:
    command, table = quick_look("tokvid-sprites-codec")
    arguments = [str(tmp_path / "there") if word == "FOLDER" else word for word in command.split()]
    figures = json.loads(succeed(tokvid(*arguments, "--json", cwd=tmp_path, threads=None)))
    assert set(table) == {"psnr", "ssim", "codebook_usage"}
    for name, value in table.items():
        assert figures[name] == pytest.approx(float(value), rel=2e-3), name


def test_what_comes_with_tokvid_is_small_and_one_codec() -> None:
    assert shipped_models() == ["tokvid-sprites-codec", "tokvid-sprites-lm"]
    assert load_codec("tokvid-sprites-codec").codec_id == load_codec("tokvid-sprites-lm/codec").codec_id
    files = {path.resolve() for path in hub_cards_folder().rglob("*") if path.is_file()}
    assert sum(path.stat().st_size for path in files) < 20 * MEGABYTE
