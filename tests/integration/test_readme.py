"""What the README says works: its commands are run, its code is executed, its files are there.

What is cheap runs for real, in a folder that holds a finished fast demo. Trainings run with a few steps; the demo
itself is made by a fixture; installation is tested in test_packaging.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from tests.integration.conftest import FinishedDemo
from tests.integration.processes import ROOT, run, succeed, tokvid
from tokvid import read_video
from tokvid.cli import demo as demo_verb
from tokvid.cli.main import VERBS, Parser
from tokvid.config import from_mapping
from tokvid.recipe import load_recipe
from tokvid_lm import VideoLM
from tokvid_lm.text_tokenizer import train_text_tokenizer
from tokvid_lm.training_config import LMRecipe, PretrainedModelConfig
from tokvid_tokenizers.training_config import CodecRecipe

README = (ROOT / "README.md").read_text(encoding="utf-8")
HUB_NAME = "HuggingFaceTB/SmolLM2-135M"
MAKE = ("make demo", "make test")
# Each is its own line of installation and demo: test_packaging installs for real.
INSTALL = (
    "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/tokvid demo",
    r"python -m venv .venv; .venv\Scripts\pip install .; .venv\Scripts\tokvid demo",
)
CHEAP = (
    "--data.train_clips=48",
    "--data.held_out_clips=8",
    "--training.steps=2",
    "--training.warmup_steps=0",
    "--training.batch_size=4",
)
# Two steps have no room for the stages of a language model's recipe, nor eight clips for so many captions.
CHEAP_LM = ("--training.curriculum=[]", "--evaluation.clips=2")
EACH_ALONE = "import runpy, sys\nfor path in sys.argv[1:]:\n    runpy.run_path(path)"


@dataclass(frozen=True)
class Block:
    """A fenced piece of the README: its language and its text."""

    language: str
    text: str


def blocks(*languages: str) -> list[str]:
    """The texts of the README's fenced pieces in these languages, in order."""
    found = [Block(m[1], m[2]) for m in re.finditer(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)]
    assert {block.language for block in found} == {"sh", "powershell", "python", "yaml"}
    return [block.text for block in found if block.language in languages]


def shell_commands() -> list[str]:
    """Every command of the README without its comment."""
    lines = [line.partition("#")[0].strip() for text in blocks("sh", "powershell") for line in text.splitlines()]
    return [line for line in lines if line]


def verbs() -> list[list[str]]:
    """The arguments of every ``tokvid ...`` of the README."""
    return [shlex.split(line)[1:] for line in shell_commands() if line.startswith("tokvid ")]


def test_every_command_is_known_to_these_tests() -> None:
    commands = shell_commands()
    assert {*MAKE, *INSTALL} <= set(commands)
    rest = [line for line in commands if line not in {*MAKE, *INSTALL} and not line.startswith("tokvid ")]
    assert rest == []
    # What is for runs of several processes alone is in recipes/README.md, and run in tests/lm/test_deepspeed.py; what
    # wants the Hub is in docs/hub.md, and run in tests/tokvid/test_hub_client.py; what wants weights of others is in
    # docs/published-codecs.md, and run in tests/tokenizers/test_vidtok.py.
    assert {arguments[0] for arguments in verbs()} == set(VERBS) - {"reshape", "push", "convert"}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("target", "last"), [("demo", "/tokvid demo"), ("test", "/python -m pytest -q")])
def test_make_does_what_the_readme_says(target: str, last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # These tests may be run by make themselves.
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARGS"):
        monkeypatch.delenv(name, raising=False)
    said = succeed(run("make", "-n", target, cwd=ROOT))
    assert said.splitlines()[-1].rstrip().endswith(last)


@pytest.mark.parametrize("line", INSTALL)
def test_the_other_way_in_makes_installs_and_runs(line: str) -> None:
    steps = [step.split() for step in re.split(r"&&|;", line)]
    assert [step[1:] for step in steps] == [["-m", "venv", ".venv"], ["install", "."], ["demo"]]
    folder = ".venv\\Scripts\\" if "\\" in line else ".venv/bin/"
    assert [step[0] for step in steps[1:]] == [f"{folder}pip", f"{folder}tokvid"]


def test_the_demos_are_commands_that_exist() -> None:
    lines = [arguments[1:] for arguments in verbs() if arguments[0] == "demo"]
    assert any("--fast" in line for line in lines) and any("--data" in line for line in lines)
    for line in lines:
        parser = Parser(prog="tokvid demo")
        demo_verb.add_arguments(parser)
        asked = parser.parse_args(line)
        output = Path(asked.output or "runs/demo")
        codec, lm = demo_verb.recipes(fast=asked.fast, data=asked.data, output=output)
        assert codec.data == lm.data and lm.codec == str(output / "codec" / "codec")


def test_the_commands_of_the_cards_are_complete() -> None:
    """Not run here: the figures that they give take hours."""
    for card in (ROOT / "hub_cards").glob("*/README.md"):
        text = card.read_text(encoding="utf-8")
        lines = [*re.findall(r"`(tokvid [^`]+)`", text), *re.findall(r"^```sh\n(tokvid .*)$", text, re.MULTILINE)]
        commands = [shlex.split(line) for line in lines]
        assert len(commands) >= 2, f"{card} says how none of its figures was found"
        for _, name, *rest in commands:
            parser = Parser(prog=f"tokvid {name}")
            importlib.import_module(VERBS[name].module).add_arguments(parser)
            _, settings = parser.parse_known_args(rest)
            assert VERBS[name].overrides or not settings, settings
            assert all(re.fullmatch(r"--[\w.]+=.+", setting) for setting in settings)


def test_the_yaml_fits_the_recipes() -> None:
    found = [yaml.safe_load(text) for text in blocks("yaml")]
    data, model = next(d for d in found if "data" in d), next(d for d in found if "model" in d)
    assert from_mapping(CodecRecipe, {**load_recipe("codec/sprites-tiny"), **data}).data.kind == "folder"
    recipe = from_mapping(LMRecipe, {**load_recipe("lm/sprites-tiny"), **model})
    assert recipe.model == PretrainedModelConfig(name=HUB_NAME)


def test_every_link_leads_somewhere() -> None:
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"):
        targets = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
        missing = [t for t in targets if not t.startswith("https://") and not (path.parent / t).exists()]
        assert missing == [], path.name


@pytest.fixture(scope="module")
def workspace(fast_demo: FinishedDemo, own_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader has it after ``tokvid demo``; a small model stands in for the one on the Hub."""
    place = tmp_path_factory.mktemp("reader")
    shutil.copytree(fast_demo.folder, place / "runs" / "demo")
    shutil.copytree(own_videos, place / "my_videos")
    tokenizer = train_text_tokenizer(["A fox is a small animal.", "a fox moves left over grass"], 300)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(place / HUB_NAME)
    tokenizer.save_pretrained(place / HUB_NAME)
    return place


@pytest.fixture(scope="module")
def after_python(workspace: Path) -> Path:
    """The workspace after every Python block of the README, in order and each in a namespace of its own."""
    files = []
    for number, text in enumerate(blocks("python")):
        files.append(workspace / f"block_{number}.py")
        files[-1].write_text(text, encoding="utf-8")
    assert len(files) >= 4
    succeed(run(sys.executable, "-c", EACH_ALONE, *files, cwd=workspace))
    return workspace


@pytest.mark.slow
def test_the_python_blocks_run_and_end_in_pictures(after_python: Path) -> None:
    frames = read_video(after_python / "fox.mp4").frames
    assert frames.shape == (17, 32, 32, 3) and frames.std() > 5
    with Image.open(after_python / "codec.png") as image:
        picture = np.asarray(image.convert("RGB"))
    assert picture.shape[1] >= 17 * 64 and picture.shape[0] >= 2 * 64 and picture.std() > 5
    assert VideoLM.from_pretrained(after_python / "runs" / "smollm-video").model.config.num_hidden_layers == 2


@pytest.mark.slow
def test_the_commands_run(after_python: Path) -> None:
    for verb, *arguments in verbs():
        if verb == "demo" or (verb == "chat" and not arguments):
            continue  # the one takes minutes, the other a person: tests/tokvid/test_cli_chat.py is one
        if verb == "train":
            arguments += [*CHEAP, *(CHEAP_LM if "lm/sprites-tiny" in arguments else ())]
        printed = succeed(tokvid(verb, *arguments, cwd=after_python))
        assert printed.strip(), (verb, arguments)
    assert read_video(after_python / "fox-again.mp4").frames.shape == (17, 32, 32, 3)
    assert (after_python / "mine.yaml").is_file()
    VideoLM.from_pretrained(after_python / "runs" / "mine" / "lm" / "lm")


@pytest.mark.slow
def test_an_extended_model_trains_from_a_recipe(after_python: Path) -> None:
    (model,) = [text for text in blocks("yaml") if "pretrained" in text]
    recipe = {**load_recipe("lm/sprites-tiny"), **yaml.safe_load(model), "codec": "runs/demo/codec/codec"}
    (after_python / "extended.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    succeed(tokvid("train", "extended.yaml", *CHEAP, *CHEAP_LM, "--output=runs/extended", cwd=after_python))
    lm = VideoLM.from_pretrained(after_python / "runs" / "extended" / "lm")
    assert lm.model.config.hidden_size == 32


@pytest.mark.slow
def test_the_table_of_files_is_what_a_saved_model_holds(fast_demo: FinishedDemo) -> None:
    folder = fast_demo.folder / "lm" / "lm"
    table = README[README.index("| file | what it is |") :].partition("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+\.\w+)`", row.split("|")[1])}
    assert named == {
        Path(path, name).relative_to(folder).as_posix() for path, _, names in os.walk(folder) for name in names
    }
