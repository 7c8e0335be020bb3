"""Models onto a Hub and back, by the Hub's own client, against one on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lm.tiny import build_model, build_tokenizer
from tests.loopback_hub import LoopbackHub, loopback_hub
from tests.tokenizers.lively import smallest_codec
from tests.tokvid.test_code_shards import fill, plan
from tokvid_lm import VideoLM
from tokvid_lm.adapters import trained_adapters
from tokvid_lm.lora import LoRAConfig, insert_adapters, merge_adapters
from tokvid_tokenizers import load_codec

ROOT = Path(__file__).resolve().parents[2]
RUN = {
    "recipe": {"task": "codec", "seed": 3, "output": "/srv/me/runs/x", "data": {"path": "/srv/me/videos"}},
    "metrics": {
        "psnr": 25.125,
        "oracle": {"sprite_right": 0.5},
        "provenance": {
            "command": ["tokvid", "train", "mine.yaml"],
            "versions": {"torch": "2.14"},
            "machine": {"cores": 2},
        },
    },
}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with loopback_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``codec``, ``lm`` and the ``run`` that is said to have made them."""
    folder = tmp_path_factory.mktemp("saved")
    smallest_codec(0).save_pretrained(folder / "codec")
    codec = load_codec("preset:tiny")
    VideoLM.extend(build_model("llama"), codec=codec, tokenizer=build_tokenizer()).save_pretrained(folder / "lm")
    (folder / "run").mkdir()
    for name, content in RUN.items():
        (folder / "run" / f"{name}.json").write_text(json.dumps(content))
    return folder


START = """
import json
from tokvid.errors import TokvidError
from tokvid.hub import local_folder
from tokvid.hub_card import read_run
from tokvid_tokenizers import VideoCodec, load_codec

def say(call):
    try:
        print("said", json.dumps(call()))
    except TokvidError as error:
        print("said", json.dumps(f"{type(error).__name__}: {error}"))
"""


def run(program: str, hub: LoopbackHub, cwd: Path, *, start: str = START, **variables: str) -> list[Any]:
    """What ``program`` hands to ``say`` in a process whose client knows this Hub; of an error, its line."""
    done = subprocess.run(
        [sys.executable, "-c", start + program],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(cwd / "hf"),
            "HF_TOKEN": hub.token,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("", "tokenizers", "lm")),
            **variables,
        },
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line.removeprefix("said ")) for line in done.stdout.splitlines() if line.startswith("said ")]


@pytest.mark.slow
def test_a_codec_goes_there_and_comes_back(hub: LoopbackHub, saved: Path, tmp_path: Path) -> None:
    program = f"""
codec = VideoCodec.from_pretrained({str(saved / "codec")!r})
say(lambda: codec.push_to_hub("me/codec", run=read_run({str(saved / "run")!r}), license="mit"))
say(lambda: load_codec("me/codec").codec_id == codec.codec_id)
say(lambda: str(next(VideoCodec.from_pretrained("me/codec", dtype=__import__("torch").float64).parameters()).dtype))
for name, value in codec.state_dict().items():
    if value.is_floating_point():
        value.add_(0.25)
say(lambda: codec.push_to_hub("me/codec", revision="v2", private=True))
say(lambda: [load_codec("me/codec", revision=name).codec_id == codec.codec_id for name in ("v2", "main")])
say(lambda: load_codec("me/codec", revision="v3"))
say(lambda: load_codec("me/codec", local_files_only=True).codec_id != codec.codec_id)
say(lambda: load_codec("me/codec", cache_dir="elsewhere", local_files_only=True))
"""
    pushed, same, dtype, _, revisions, missing, cached, elsewhere = run(program, hub, tmp_path)
    assert pushed.startswith(f"{hub.url}/me/codec/commit/") and same and dtype == "torch.float64"
    assert revisions == [True, False] and cached
    assert missing.startswith("ModelError: there is no folder 'me/codec', and the Hugging Face Hub gave no me/codec at")
    assert elsewhere.startswith("ModelError: there is no folder 'me/codec', and the Hugging Face Hub gave no me/codec:")
    card = hub.files("me/codec")["README.md"].decode()
    assert "license: mit" in card and "library_name: tokvid" in card
    assert (
        "| psnr | 25.125 |" in card and "| oracle, sprite right | 0.5 |" in card and "`tokvid train mine.yaml`" in card
    )
    assert "/srv/me" not in card and "path: videos" in card
    assert "Not evaluated." in hub.files("me/codec", "v2")["README.md"].decode()


@pytest.mark.slow
def test_a_language_model_goes_there_and_plain_transformers_load_it(
    hub: LoopbackHub, saved: Path, tmp_path: Path
) -> None:
    program = f"""
from tokvid_lm import VideoLM
lm = VideoLM.from_pretrained({str(saved / "lm")!r})
say(lambda: lm.push_to_hub("org/lm").startswith("http"))
again = VideoLM.from_pretrained("org/lm")
theirs = again.model.state_dict()
say(lambda: all((theirs[name] == tensor).all().item() for name, tensor in lm.model.state_dict().items()))
say(lambda: again.codec.codec_id == lm.codec.codec_id == load_codec("org/lm", subfolder="codec").codec_id)
say(lambda: load_codec("org/lm", subfolder="../lm"))
say(lambda: load_codec("org/lm", subfolder="decoder"))
"""
    assert run(program, hub, tmp_path) == [
        True,
        True,
        True,
        "ModelError: subfolder is a path inside the folder org/lm, got '../lm'",
        "ModelError: org/lm has no subfolder 'decoder'",
    ]
    plain = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (each.from_pretrained("org/lm") for each in (AutoModelForCausalLM, AutoTokenizer))
print("said", json.dumps([type(model).__name__, len(tokenizer("ab").input_ids) > 0]))
"""
    block = (
        "import json, sys\nfor name in ('tokvid', 'tokvid_lm', 'tokvid_tokenizers'):\n    sys.modules[name] = None\n"
    )
    assert run(block + plain, hub, tmp_path, start="") == [["LlamaForCausalLM", True]]
    assert "codec" in hub.files("org/lm")["README.md"].decode()


@pytest.mark.slow
def test_what_goes_wrong_is_one_line_and_changes_nothing(hub: LoopbackHub, saved: Path, tmp_path: Path) -> None:
    push = f"""
codec = VideoCodec.from_pretrained({str(saved / "codec")!r})
say(lambda: codec.push_to_hub("me/codec"))
"""
    assert run(push, hub, tmp_path)[0].startswith(hub.url)
    before = dict(hub.files("me/codec"))
    # Of what an earlier model left there nothing may be taken for the new one's; what else people keep there stays.
    hub.put("me/codec", {**before, "diffusion_head.json": b"{}", "old.safetensors": b"", "clip.png": b"png"})
    run(push, hub, tmp_path)
    assert hub.files("me/codec") == {**before, "clip.png": b"png"}
    before["clip.png"] = b"png"
    hub.refused = True
    (refused,) = run(push, hub, tmp_path)
    assert refused.startswith("ModelError: the Hugging Face Hub did not take me/codec, where no file has changed: ")
    hub.refused, hub.hangs_up = False, True
    (interrupted,) = run(push, hub, tmp_path)
    assert interrupted.startswith("ModelError: the Hugging Face Hub did not take me/codec")
    hub.hangs_up = False
    assert hub.files("me/codec") == before
    no_token = run(push, hub, tmp_path, HF_TOKEN="wrong")
    assert no_token[0].startswith("ModelError: the Hugging Face Hub did not take me/codec")
    names = 'for name in ("codec", "me/../codec", "../codec", "me/a/b"):\n    say(lambda: codec.push_to_hub(name))\n'
    for line in run(push + names, hub, tmp_path)[1:]:
        assert line.startswith("ModelError: a model on the Hugging Face Hub is called org/name, got ")


@pytest.mark.slow
def test_bad_repositories_are_one_line(hub: LoopbackHub, saved: Path, tmp_path: Path) -> None:
    files = {name: (saved / "codec" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    hub.put("org/pickles", {"config.json": files["config.json"], "pytorch_model.bin": b"\x80\x04"})
    hub.put("org/empty", {"README.md": b""})
    hub.put("org/half", {"config.json": files["config.json"]})
    hub.put("org/damaged", {**files, "model.safetensors": files["model.safetensors"][:-9]})
    load = "\nfor name in ({}):\n    say(lambda: load_codec(name))\n"
    said = run(load.format('"org/none", "org/pickles", "org/empty", "org/half", "org/damaged"'), hub, tmp_path)
    assert said[0].startswith("ModelError: there is no folder 'org/none', and the Hugging Face Hub gave no org/none:")
    assert "org/pickles holds its weights in pytorch_model.bin, and reading that would run what it says" in said[1]
    assert said[2] == "ModelError: org/empty holds no model: neither safetensors nor JSON"
    assert said[3].startswith("CheckpointError") and "holds no codec weights" in said[3]
    assert said[4].startswith("CheckpointError") and "is torn" in said[4]
    hub.put("org/whole", files)
    hub.torn = True
    (torn,) = run(load.format('"org/whole",'), hub, tmp_path)
    assert torn.startswith("ModelError: there is no folder 'org/whole', and the Hugging Face Hub gave no org/whole:")
    hub.torn = False
    assert run('say(lambda: load_codec("org/whole").codec_id)', hub, tmp_path)[0].startswith("tokvid-")
    hub.url = "http://127.0.0.1:9"
    said = run('say(lambda: load_codec("org/whole").codec_id); say(lambda: load_codec("org/other"))', hub, tmp_path)
    assert said[0].startswith("tokvid-") and said[1].startswith("ModelError: there is no folder 'org/other'")


@pytest.mark.slow
def test_the_command_pushes_what_a_run_has_made(hub: LoopbackHub, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "codec", tmp_path / "run" / "codec")
    program = """
from tokvid.cli.main import main
say(lambda: main(["push", "run/codec", "me/codec"]))
say(lambda: main(["push", "run/codec", "me/codec", "--not-evaluated", "--revision", "bare"]))
say(lambda: main(["push", "run/codec", "me/codec", "--run", RUN, "--license", "mit", "--private"]))
say(lambda: main(["push", "run", "me/codec", "--not-evaluated"]))
""".replace("RUN", repr(str(saved / "run")))
    assert run(program, hub, tmp_path) == [2, 0, 0, 2]
    assert "| psnr | 25.125 |" in hub.files("me/codec")["README.md"].decode()
    assert "Not evaluated." in hub.files("me/codec", "bare")["README.md"].decode()


def test_code_shards_go_there_as_a_data_set(hub: LoopbackHub, tmp_path: Path) -> None:
    fill(tmp_path / "shards", plan()).finish()
    start = "import json\nfrom tokvid.cli.main import main\ndef say(call): print('said', json.dumps(call()))\n"
    push = 'say(lambda: main(["push", "shards", "me/clips", "--revision", "v1", "--private"]))'
    back = """
from huggingface_hub import snapshot_download
from tokvid.data.code_shards import CodeShards
folder = snapshot_download("me/clips", repo_type="dataset", revision="v1", local_dir="again")
say(lambda: [CodeShards(folder, split).digest() for split in ("train", "held_out")])
say(lambda: [CodeShards("shards", split).digest() for split in ("train", "held_out")])
"""
    code, again, shards = run(push + back, hub, tmp_path, start=start)
    assert code == 0 and again == shards
    files = hub.files("me/clips", "v1", kind="datasets")
    assert files["README.md"].startswith(b"---\ntags:") and hub.repositories["datasets/me/clips"].private
    # Shards of an earlier pushing would be read with the new ones.
    hub.put("me/clips", {**files, "data/train-00009-of-00010.parquet": b"", "notes.txt": b""}, "v1", kind="datasets")
    assert run(push, hub, tmp_path, start=start) == [0]
    assert hub.files("me/clips", "v1", kind="datasets").keys() == {*files, "notes.txt"}
    shard = next((tmp_path / "shards" / "data").glob("train-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-9])
    before = dict(files)
    assert run(push, hub, tmp_path, start=start) == [2]  # torn: it is read before
    refused = 'say(lambda: main(["push", "shards", "me/clips", "--license", "mit"]))'
    assert run(refused, hub, tmp_path, start=start) == [2]
    assert {**hub.files("me/clips", "v1", kind="datasets"), **before} == hub.files("me/clips", "v1", kind="datasets")


def test_adapters_go_there_and_peft_loads_them(hub: LoopbackHub, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    build_model("llama", tied=True).save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    hub.put("org/base", {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()})
    lm = VideoLM.extend(tmp_path / "base", codec=load_codec("preset:tiny"))
    config = LoRAConfig(rank=2)
    insert_adapters(lm.model, config, first_new_row=lm.vocabulary.text_size)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.add_(0.1 if parameter.requires_grad else 0.0)
    adapters = trained_adapters(lm.model, config, base=str(tmp_path / "base"))
    merge_adapters(lm.model)
    lm.save_pretrained(tmp_path / "adapters", adapters=adapters)
    start = "import json\nfrom tokvid.cli.main import main\ndef say(call): print('said', json.dumps(call()))\n"
    push = ["push", "adapters", "me/adapters", "--not-evaluated"]
    program = f"""
say(lambda: main({push!r}))
say(lambda: main({[*push, "--base", "org/base"]!r}))
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from tokvid_lm import VideoLM
lm = VideoLM.from_pretrained("me/adapters")
model = AutoModelForCausalLM.from_pretrained("org/base")
model.resize_token_embeddings(lm.vocabulary.total_size)
model = PeftModel.from_pretrained(model, "me/adapters")
ids = torch.arange(0, lm.vocabulary.total_size, 2)[None]
with torch.no_grad():
    say(lambda: [each(ids).logits.double().sum().item() for each in (model, lm.model)])
"""
    local, pushed, sums = run(program, hub, tmp_path, start=start)
    assert (local, pushed) == (2, 0)  # others do not have a folder of this machine
    with torch.no_grad():
        expected = lm.model(torch.arange(0, lm.vocabulary.total_size, 2)[None]).logits.double().sum().item()
    assert sums == pytest.approx([expected, expected], rel=1e-4)
    files = hub.files("me/adapters")
    card = files["README.md"].decode()
    assert "base_model: org/base" in card and 'PeftModel.from_pretrained(model, "me/adapters")' in card
    assert str(tmp_path).encode() not in b"".join(files[name] for name in files if not name.endswith(".safetensors"))
