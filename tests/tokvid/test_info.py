"""``tokvid info`` on codecs and video language models: the facts are those of the real thing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lm.tiny import build_model, build_tokenizer
from tests.tokenizers.lively import smallest_codec
from tokvid.cli import main as command
from tokvid.config import from_mapping
from tokvid.diffusion_head import DiffusionHead, DiffusionHeadConfig
from tokvid.flow import Refinement
from tokvid.head_files import save_head
from tokvid_lm import VideoLM
from tokvid_lm.hybrid import HEAD
from tokvid_lm.video_settings import VideoSettings
from tokvid_tokenizers import load_codec

ROOT = Path(__file__).resolve().parents[2]


def info(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert command.main(["info", *arguments, "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert command.main(["info", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_the_base_preset(capsys: pytest.CaptureFixture[str]) -> None:
    facts = info(capsys, "preset:base")
    assert (facts["codec"], facts["size"], facts["grid"], facts["codes"]) == (
        "preset:base",
        "17x128x128",
        "5x16x16",
        1280,
    )
    assert (facts["temporal_stride"], facts["spatial_stride"]) == (4, 8)
    assert (facts["codebook_size"], facts["num_codebooks"]) == (64000, 1)
    assert facts["quantizer"] == {"kind": "fsq", "levels": [8, 8, 8, 5, 5, 5]}
    assert facts["gmac"]["total"] == pytest.approx(facts["gmac"]["encode"] + facts["gmac"]["decode"])
    assert facts["gmac"]["total"] <= 34
    assert command.main(["info", "preset:base"]) == 0
    assert f"parameters          {facts['parameters']}\n" in capsys.readouterr().out


def test_a_saved_codec_at_another_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codec = smallest_codec()
    codec.save_pretrained(tmp_path)
    facts = info(capsys, str(tmp_path), "--size", "6x8X12")
    assert facts["codec_id"] == codec.codec_id
    assert facts["parameters"] == sum(parameter.numel() for parameter in codec.parameters())
    assert (facts["grid"], facts["codes"]) == ("3x2x3", 18)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    assert "torn" in fails(capsys, str(tmp_path))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm") / "model"
    codec = load_codec("preset:tiny")
    VideoLM.extend(build_model("llama"), codec=codec, tokenizer=build_tokenizer()).save_pretrained(folder)
    return folder


def test_a_video_language_model(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = info(capsys, str(saved), "--size", "5x16x16")
    lm = VideoLM.from_pretrained(saved)
    assert facts["model_type"] == "llama" and facts["architecture"] == "LlamaForCausalLM"
    assert facts["parameters"] == sum(parameter.numel() for parameter in lm.model.parameters())
    assert facts["dimensions"]["hidden_size"] == 32
    assert facts["vocabulary"]["total"] == lm.vocabulary.total_size
    assert facts["vocabulary"]["text"] == lm.vocabulary.text_size
    assert facts["codec_id"] == facts["its_codec"]["codec_id"] == lm.codec.codec_id
    assert facts["its_codec"]["grid"] == "2x2x2"
    assert facts["modes"] == ["next_token"]
    assert from_mapping(VideoSettings, facts["settings"], where="settings") == lm.settings
    said = (facts["template"], facts["layout"], facts["positions"])
    assert said == (lm.template.kind, lm.layout.kind, lm.positions.kind)


def test_the_diffusion_head_of_a_model_is_counted_apart(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_head = tmp_path / "model"
    shutil.copytree(saved, with_head)
    head = DiffusionHead(DiffusionHeadConfig(width=8, condition_dim=3, mean=(0.0,), deviation=(1.0,)))
    save_head(with_head, HEAD, head, Refinement(steps=7))
    facts, plain = info(capsys, str(with_head)), info(capsys, str(saved))
    assert facts["parameters"] == plain["parameters"] and "diffusion_head" not in plain
    assert facts["diffusion_head"]["parameters"] == sum(parameter.numel() for parameter in head.parameters())
    assert facts["diffusion_head"]["refinement"]["steps"] == 7
    (with_head / f"{HEAD}.safetensors").unlink()
    assert f"{HEAD}.safetensors is torn or" in fails(capsys, str(with_head))


def test_a_video_language_model_is_described_without_transformers(saved: Path) -> None:
    code = (
        "import sys; from tokvid.cli.main import main; "
        f"code = main(['info', {str(saved)!r}]); assert code == 0; assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vocabulary" in done.stdout


def test_a_model_beside_another_codec_is_one_line(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "model"
    shutil.copytree(saved, other)
    facts = json.loads((other / "video_lm.json").read_text(encoding="utf-8"))
    (other / "video_lm.json").write_text(json.dumps(facts | {"codec_id": "tokvid-0"}), encoding="utf-8")
    assert "but the model speaks tokvid-0: put the right codec there" in fails(capsys, str(other))


def test_a_name_that_is_nothing_is_told_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, "tokvid-sprite-lm")
    assert "'tokvid-sprite-lm', and with tokvid comes tokvid-sprites-codec, tokvid-sprites-lm" in said


def test_a_damaged_video_language_model_is_one_line(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "video_lm.json").write_text((saved / "video_lm.json").read_text(encoding="utf-8"), encoding="utf-8")
    assert "config.json is missing" in fails(capsys, str(tmp_path))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert info(capsys, str(tmp_path))["parameters"] is None
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    assert "model.safetensors is torn" in fails(capsys, str(tmp_path))
    for text, words in (("{", "not JSON"), ("[]", "holds list"), ('{"vocabulary": {}}', "'code_offset'")):
        (tmp_path / "video_lm.json").write_text(text, encoding="utf-8")
        assert words in fails(capsys, str(tmp_path))


def test_what_is_wrong_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'base'" in fails(capsys, "preset:bse")
    assert "written TxHxW" in fails(capsys, "preset:tiny", "--size", "17x128")
    assert "multiples of 8, got 130x128" in fails(capsys, "preset:tiny", "--size", "17x130x128")
    assert "--size is for a codec, and this machine is none" in fails(capsys, "--size", "1x8x8")
    assert "neither a codec" in fails(capsys, str(tmp_path))
    assert "no.mp4" in fails(capsys, str(tmp_path / "no.mp4"))
