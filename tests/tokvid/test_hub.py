"""Models by name: a folder, or a copy in the Hub's cache, read without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from tests.lm.tiny import build_model, build_tokenizer
from tests.tokenizers.lively import smallest_codec
from tokvid.errors import ModelError
from tokvid.hub import DATA_FILES, is_hub_id, local_folder
from tokvid_lm import VideoLM
from tokvid_tokenizers import load_codec

ROOT = Path(__file__).resolve().parents[2]
COMMITS = {"main": "0" * 40, "v1": "1" * 40}


def put_into_cache(cache: Path, repository: str, revision: str, folder: Path) -> None:
    """What ``snapshot_download`` leaves of a repository."""
    place = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / COMMITS[revision])
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / revision).write_text(COMMITS[revision])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a language model and two revisions of a codec."""
    folder, cache = tmp_path_factory.mktemp("saved"), tmp_path_factory.mktemp("hub")
    lm = VideoLM.extend(build_model("llama"), codec=load_codec("preset:tiny"), tokenizer=build_tokenizer())
    lm.save_pretrained(folder / "lm")
    put_into_cache(cache, "org/tiny-lm", "main", folder / "lm")
    for seed, revision in enumerate(COMMITS):
        smallest_codec(seed).save_pretrained(folder / revision)
        put_into_cache(cache, "org/tiny-codec", revision, folder / revision)
    return cache


def run_offline(program: str, cache: Path, cwd: Path) -> str:
    """What ``program`` prints in a process without a network; the cache's place is read when it starts."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_CACHE": str(cache),
            "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("", "tokenizers", "lm")),
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_models_of_the_hub_are_loaded_from_the_cache(cache: Path, tmp_path: Path) -> None:
    program = """
from tokvid.errors import ModelError
from tokvid_lm import TextSegment, VideoLM
from tokvid_tokenizers import load_codec

print(load_codec("org/tiny-codec").codec_id)
print(load_codec("org/tiny-codec", revision="v1").codec_id)
lm = VideoLM.from_pretrained("org/tiny-lm")
print(lm.codec.codec_id, lm.generate([TextSegment("a cat")], num_frames=5, height=16, width=16)[0].codes.tolist())
for call in (
    lambda: VideoLM.from_pretrained("org/missing"),
    lambda: load_codec("org/tiny-codec", revision="v2"),
):
    try:
        call()
    except ModelError as error:
        print(str(error).count("\\n"), error)
"""
    codec, older, lm, missing, revision = run_offline(program, cache, tmp_path).splitlines()
    assert codec == smallest_codec(0).codec_id and older == smallest_codec(1).codec_id
    here = VideoLM.from_pretrained(cache / "models--org--tiny-lm" / "snapshots" / COMMITS["main"])
    assert lm.startswith(here.codec.codec_id)
    assert missing.startswith("0 there is no folder 'org/missing', and the Hugging Face Hub gave no org/missing: ")
    assert revision.startswith("0 ") and "gave no org/tiny-codec at revision 'v2': " in revision


def test_a_folder_goes_before_the_hub(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    smallest_codec(2).save_pretrained(tmp_path / "org" / "tiny-codec")
    assert not is_hub_id("org/tiny-codec")
    assert load_codec("org/tiny-codec").codec_id == smallest_codec(2).codec_id
    assert local_folder("org/tiny-codec") == Path("org/tiny-codec")
    for call in (lambda: load_codec("org/tiny-codec", revision="v1"), lambda: local_folder("org", revision="v1")):
        with pytest.raises(ModelError, match="has no revision 'v1': leave it out"):
            call()


@pytest.mark.parametrize("name", ["nowhere", "runs/nowhere/lm/lm", "../org/name", "cosmos:org/name", "org/", "a b/c"])
def test_what_cannot_be_on_the_hub_is_not_asked_for(name: str) -> None:
    assert not is_hub_id(name)
    with pytest.raises(ModelError, match=r"there is no folder .*is called org/name"):
        VideoLM.from_pretrained(name)
    with pytest.raises(ModelError, match=r"no codec .*or one of preset:"):
        load_codec(name)


def test_a_path_is_never_on_the_hub(tmp_path: Path) -> None:
    assert is_hub_id("org/name") and not is_hub_id(Path("org/name"))
    (tmp_path / "run" / "codec").mkdir(parents=True)
    (tmp_path / "run" / "codec" / "config.json").touch()
    with pytest.raises(ModelError, match=r"did you mean '.*codec'\?"):
        load_codec(tmp_path / "run")
    with pytest.raises(ModelError, match="no codec"):
        load_codec(Path("org/name"))


def test_neither_code_nor_pickles_are_taken() -> None:
    wanted = [
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "video_lm.json",
        "codec/config.json",
        "codec/model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.txt",
        "chat_template.jinja",
    ]
    unwanted = [
        "modeling_mine.py",
        "codec/code.py",
        "pytorch_model.bin",
        "optimizer.pt",
        "rng_state.pth",
        "x.pkl",
        "a.so",
    ]
    assert list(filter_repo_objects([*wanted, *unwanted], allow_patterns=list(DATA_FILES))) == wanted


def test_a_model_that_comes_with_tokvid_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = local_folder("tokvid-sprites-lm")
    assert folder.name == "tokvid-sprites-lm" and (folder / "model.safetensors").is_file()
    assert not is_hub_id("tokvid-sprites-lm/codec")
    assert load_codec("tokvid-sprites-lm/codec").codec_id == load_codec(folder / "codec").codec_id
    with pytest.raises(ModelError, match="did you mean 'tokvid-sprites-lm/codec'"):
        load_codec("tokvid-sprites-lm")
    for name in (Path("tokvid-sprites-lm"), "tokvid-sprites-lm/..", "tokvid-sprites-lm/codec/..", "../hub_cards"):
        with pytest.raises(ModelError, match="there is no folder"):
            local_folder(name)
    (tmp_path / "tokvid-sprites-lm").mkdir()
    monkeypatch.chdir(tmp_path)
    assert local_folder("tokvid-sprites-lm") == Path("tokvid-sprites-lm")  # a folder of one's own comes first
