"""``tokvid info presets`` and ``--measure``: a table of what each preset says alone, and what a real clip takes."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tokenizers.lively import SMALLEST, smallest_codec
from tokvid.cli import main as command
from tokvid.errors import ModelError
from tokvid_tokenizers.measured_cost import MOST_RUNS, measure_cost
from tokvid_tokenizers.presets import PRESETS
from tokvid_tokenizers.quantizers import KLConfig

SIZE = "17x256x256"
CLIP_MB = 17 * 3 * 256 * 256 * 4 / 1e6


def info(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert command.main(["info", *arguments, "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert command.main(["info", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_a_table_of_all_presets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = info(capsys, "presets", "--size", SIZE)
    assert facts["size"] == SIZE and list(facts["presets"]) == [f"preset:{name}" for name in PRESETS]
    assert facts["presets"]["preset:quality"] == info(capsys, "preset:quality", "--size", SIZE)
    assert "measured" not in facts["presets"]["preset:quality"]
    assert command.main(["info", "presets", "--size", SIZE]) == 0
    head, titles, *lines = capsys.readouterr().out.splitlines()
    assert head == f"one clip of {SIZE}" and len({len(line) for line in (titles, *lines)}) == 1
    rows = {line.split()[0]: line.split() for line in lines}
    assert list(rows) == list(PRESETS)
    assert rows["base"][1:] == ["shift", "4x8x8", "13.3", "43.48", "61.67", "5120"]
    # A folder of that name is a folder, as everywhere.
    monkeypatch.chdir(tmp_path)
    smallest_codec().save_pretrained(tmp_path / "presets")
    assert info(capsys, "presets")["codec"] == "presets"


def test_it_measures_a_clip(capsys: pytest.CaptureFixture[str]) -> None:
    facts = info(capsys, "preset:tiny", "--size", SIZE, "--measure")
    measured = facts.pop("measured")
    assert facts == info(capsys, "preset:tiny", "--size", SIZE)
    assert measured["encode_seconds"] > 0 and measured["decode_seconds"] > 0
    assert 1 <= measured["runs"] <= MOST_RUNS and measured["threads"] >= 1
    assert measured["device"] and measured["dtype"] == "float32"
    if measured["peak_memory_mb"] is None:
        assert sys.platform != "linux"
    else:
        # Both the clip and its reconstruction are held, not what this process holds, which is far more.
        assert 2 * CLIP_MB <= measured["peak_memory_mb"] < 10 * CLIP_MB


def test_a_continuous_codec_has_a_cost_too(tmp_path: Path) -> None:
    smallest_codec(config=dataclasses.replace(SMALLEST, quantizer=KLConfig(dim=4))).save_pretrained(tmp_path)
    assert measure_cost(tmp_path, 5, 16, 16).encode_seconds > 0


def test_what_is_wrong_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--measure is for a codec, and this machine is none; leave it out" in fails(capsys, "--measure")
    assert "base is none; did you mean preset:base?" in fails(capsys, "base", "--size", "17x128x128")
    assert "--measure is for a codec" in fails(capsys, str(tmp_path), "--measure")
    assert "preset:compact at 17x120x120: height and width" in fails(capsys, "presets", "--size", "17x120x120")
    # More than a processor can address.
    with pytest.raises(ModelError, match="a clip of 17x1000000x1000000 does not fit into the memory here"):
        measure_cost("preset:tiny", 17, 1_000_000, 1_000_000)
    with pytest.raises(ModelError, match="multiples of 8"):
        measure_cost("preset:tiny", 17, 12, 12)
