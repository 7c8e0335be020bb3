"""A saved model that is damaged is one line that names it; nothing that is missing is filled with random numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.lm.tiny import FAMILIES, build_model
from tokvid.cli import main as command
from tokvid.errors import ModelError
from tokvid_lm import VideoLM
from tokvid_lm.loading import load_causal_lm, mark_model_type
from tokvid_lm.positions import PositionKind, replace_rotary

Damage = Callable[[Path], object]
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def whole(video_lm: VideoLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "lm"
    video_lm.save_pretrained(folder)
    return folder


def without(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def holding(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def torn(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:20_000])


def having(name: str, **facts: Any) -> Damage:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | facts), encoding="utf-8")

    return change


def with_tensors(change: Callable[[dict[str, Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no weights": (without("model.safetensors"), "no file named model.safetensors"),
    "empty weights": (holding("model.safetensors", b""), "SafetensorError: Error while deserializing header"),
    "torn weights": (torn("model.safetensors"), "its files seem damaged"),
    "a tensor missing": (with_tensors(lambda tensors: tensors.pop(UP)), f"1 missing (first: {UP})"),
    "a tensor too many": (with_tensors(lambda tensors: tensors.update(odd=torch.zeros(2))), "1 unknown (first: odd)"),
    "a tensor of another shape": (
        with_tensors(lambda tensors: tensors.update({UP: torch.zeros(3, 3)})),
        f"1 of another shape (first: {UP})",
    ),
    "another width": (having("config.json", hidden_size=64), "of another shape (first: lm_head.weight)"),
    "more layers": (having("config.json", num_hidden_layers=3), "9 missing (first: model.layers.2."),
    "fewer layers": (having("config.json", num_hidden_layers=1), "9 unknown (first: model.layers.1."),
    "another family": (having("config.json", model_type="bert"), "missing (first: bert."),
    "a word for a number": (having("config.json", num_attention_heads="x"), "expected int, got str"),
    "no configuration": (without("config.json"), "model_type"),
    "a list for a configuration": (holding("config.json", b"[]"), "model_type"),
    "no text tokenizer": (without("tokenizer.json"), "cannot load a text tokenizer"),
    "an empty text tokenizer": (holding("tokenizer.json", b"{}"), "cannot load a text tokenizer"),
    "a text tokenizer that is no JSON": (holding("tokenizer.json", b"nope"), "cannot load a text tokenizer"),
    "a list for a text tokenizer": (holding("tokenizer.json", b"[]"), "cannot load a text tokenizer"),
    "no settings of the text tokenizer": (without("tokenizer_config.json"), "tokenizer_config.json is missing"),
    "no class of the text tokenizer": (holding("tokenizer_config.json", b"{}"), "names no tokenizer_class"),
    "a list for settings": (holding("tokenizer_config.json", b"[]"), "holds list where a mapping belongs"),
    "a list for video_lm.json": (holding("video_lm.json", b"[]"), "video_lm.json holds list where a mapping belongs"),
    "no text in video_lm.json": (holding("video_lm.json", b"\xff"), "video_lm.json is not JSON"),
    "no vocabulary": (having("video_lm.json", vocabulary=None), "video_lm.json: vocabulary: expected a mapping"),
    "another vocabulary": (having("video_lm.json", vocabulary={"text_size": "x"}), "video_lm.json: 'vocabulary.text"),
    "a template that is no name": (having("video_lm.json", template=[]), "video_lm.json names no template but []"),
    "a list for settings of generation": (holding("generation_config.json", b"[]"), "its files seem damaged"),
    "no codec": (lambda folder: shutil.rmtree(folder / "codec"), "no codec"),
    "an empty codec": (holding("codec/model.safetensors", b""), "torn or no safetensors file"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_is_one_line(
    name: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, words = DAMAGES[name]
    shutil.copytree(whole, tmp_path / "lm")
    damage(tmp_path / "lm")
    video = tmp_path / "cat.mp4"
    assert command.main(["generate", "a cat", "--model", str(tmp_path / "lm"), "-o", str(video)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
    assert words in said.err and str(tmp_path / "lm") in said.err
    assert not video.exists()


def test_a_model_to_extend_may_bring_more_than_is_needed_but_not_less(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_model("llama").save_pretrained(tmp_path)
    with_tensors(lambda tensors: tensors.update({"vision.weight": torch.zeros(2)}))(tmp_path)
    load_causal_lm(tmp_path)
    assert "1 tensors are not the model's and left out (first: vision.weight)" in caplog.text
    with_tensors(lambda tensors: tensors.pop(UP))(tmp_path)
    with pytest.raises(ModelError, match=r"1 missing \(first: model\.layers\.0\.mlp\.up_proj\.weight\)$|; save"):
        load_causal_lm(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    """Reading them may run what somebody else wrote."""
    model = build_model("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_causal_lm(tmp_path)


@pytest.mark.parametrize("positions", ["3d", "mm"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_marked_model_loads_with_its_positions_and_with_nothing_else(
    family: str, positions: PositionKind, tmp_path: Path
) -> None:
    model, ids = build_model(family), torch.arange(20)[None]
    replace_rotary(model, positions, (4, 8))
    model.save_pretrained(tmp_path)
    mark_model_type(tmp_path, positions)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert json.loads(files["config.json"])["model_type"] == f"tokvid_{positions}_{family}"
    with pytest.raises(ValueError, match=f"tokvid_{positions}_{family}"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is no plain model.*VideoLM\.from_pretrained$"):
        load_causal_lm(tmp_path)
    with pytest.raises(ModelError, match="was not saved with positions"):
        load_causal_lm(tmp_path, positions="mm" if positions == "3d" else "3d")
    again = load_causal_lm(tmp_path, positions=positions, exact=True)
    replace_rotary(again, positions, (4, 8))
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files, "loading writes nothing"
    # What was loaded is a model of its own kind: saved without a mark it is plain again.
    assert again.config.model_type == family
    with pytest.raises(ModelError, match="is marked already"):
        mark_model_type(tmp_path, positions)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_marked_configuration_comes_back_whole(family: str, tmp_path: Path) -> None:
    model = build_model(family)
    model.save_pretrained(tmp_path)
    plain = load_causal_lm(tmp_path)
    mark_model_type(tmp_path, "1d")
    assert load_causal_lm(tmp_path).config.to_dict() == plain.config.to_dict()
    mark_model_type(tmp_path, "mm")
    assert load_causal_lm(tmp_path, positions="mm").config.to_dict() == plain.config.to_dict()


def test_what_was_not_marked_does_not_load_with_other_positions(tmp_path: Path) -> None:
    build_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"was not saved with positions 'mm': the model_type .* is 'llama'"):
        load_causal_lm(tmp_path, positions="mm")
