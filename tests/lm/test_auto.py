"""transformers' Auto classes on our folders, in the state that one ``import tokvid_lm.auto`` leaves them in."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

import tokvid_lm.auto  # noqa: F401
from tests.integration.processes import run, succeed
from tests.tokenizers.lively import smallest_codec
from tokvid.errors import CheckpointError
from tokvid_lm import TextSegment, VideoLM
from tokvid_lm.processor import VideoProcessor
from tokvid_lm.video_lm_folder import PROCESSOR_FILE
from tokvid_tokenizers import VideoCodec


@pytest.fixture(scope="module")
def saved(video_lm: VideoLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "lm"
    video_lm.save_pretrained(folder)
    return folder


def test_a_codec_is_a_model_and_its_configuration_one_of_transformers(saved: Path, video_lm: VideoLM) -> None:
    codec = AutoModel.from_pretrained(saved / "codec")
    assert isinstance(codec, VideoCodec) and codec.codec_id == video_lm.codec.codec_id and not codec.training
    assert next(AutoModel.from_pretrained(saved / "codec", dtype=torch.float64).parameters()).dtype == torch.float64
    config = AutoConfig.from_pretrained(saved / "codec")
    assert config.to_dict() == json.loads((saved / "codec" / "config.json").read_text())
    with pytest.raises(TypeError, match="are loaded without device_map"):
        AutoModel.from_pretrained(saved / "codec", device_map="cpu")


def test_a_codec_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    smallest_codec(0).save_pretrained(tmp_path / "codec")
    path = tmp_path / "codec" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "llama"}))
    with pytest.raises(CheckpointError, match="is of a model called 'llama', not of a codec of tokvid"):
        VideoCodec.from_pretrained(tmp_path / "codec")
    del (facts := json.loads(path.read_text()))["model_type"]  # as it was saved before it had a name
    path.write_text(json.dumps(facts))
    assert VideoCodec.from_pretrained(tmp_path / "codec").codec_id == smallest_codec(0).codec_id


def test_the_processor_of_a_language_model_writes_what_it_writes(saved: Path, video_lm: VideoLM) -> None:
    processor = AutoProcessor.from_pretrained(saved)
    assert isinstance(processor, VideoProcessor)
    inputs = processor([TextSegment("abc")])
    assert torch.equal(inputs["input_ids"][0], video_lm.processor.encode_prompt([TextSegment("abc")]))
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert model(**inputs).logits.shape == (1, inputs["input_ids"].shape[1], video_lm.vocabulary.total_size)


@pytest.mark.slow
def test_without_tokvid_the_folder_is_that_of_a_plain_model(saved: Path, tmp_path: Path) -> None:
    program = """
import sys
sys.modules |= dict.fromkeys(("tokvid", "tokvid_lm", "tokvid_tokenizers"))
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer
for each in (AutoModelForCausalLM, AutoTokenizer, AutoProcessor):
    print(type(each.from_pretrained(sys.argv[1])).__name__)
"""
    printed = succeed(run(sys.executable, "-c", program, saved, cwd=tmp_path)).split()
    assert printed[0] == "LlamaForCausalLM" and printed[1] == printed[2] != "TokvidProcessor"


def test_folders_saved_before_there_was_a_processor_are_loaded(saved: Path, tmp_path: Path, video_lm: VideoLM) -> None:
    shutil.copytree(saved, tmp_path / "lm")
    (tmp_path / "lm" / PROCESSOR_FILE).unlink()
    assert VideoLM.from_pretrained(tmp_path / "lm").vocabulary == video_lm.vocabulary
    assert type(AutoProcessor.from_pretrained(tmp_path / "lm")) is type(AutoTokenizer.from_pretrained(saved))
