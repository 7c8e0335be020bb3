"""The command as a user meets it: real processes, exit codes, one line an error."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tokvid import Video, __version__, write_video
from tokvid.cli import main as command
from tokvid.errors import ConfigError
from tokvid.recipe import shipped_recipes

ROOT = Path(__file__).resolve().parents[2]


def tokvid(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "tokvid", *arguments], cwd=cwd, capture_output=True, text=True, env=environment
    )


def run_verb(monkeypatch: pytest.MonkeyPatch, run: Callable[[object], int], *arguments: str) -> int:
    """Run ``main`` with one more verb, ``trial``, whose module is made here."""
    module = types.ModuleType("tokvid.cli.trial")
    module.add_arguments = lambda parser: parser.add_argument("--steps", type=int)  # type: ignore[attr-defined]
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tokvid.cli.trial", module)
    monkeypatch.setitem(command.VERBS, "trial", command.Verb("tokvid.cli.trial", "a trial", overrides=True))
    return command.main(["trial", *arguments])


def test_help_names_every_verb() -> None:
    done = tokvid("--help")
    assert done.returncode == 0
    assert all(f"\n  {verb} " in done.stdout for verb in command.VERBS)
    assert tokvid("--version").stdout.split() == ["tokvid", __version__]


@pytest.mark.parametrize("verb", sorted(command.VERBS))
def test_every_verb_has_its_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([verb, "--help"]) == 0
    assert f"tokvid {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inof"], "did you mean 'info'?"),
        (["info", "--jsno"], "unrecognized arguments: --jsno"),
        (["recipes"], "list | show | copy"),
        (["--verbose", "info"], "--verbose"),
        (["info", "there/is/no.mp4"], "no.mp4"),
        (["recipes", "show", "codec/sprites-tyni"], "sprites-tyni"),
        (["recipes", "show", "tokvid/data/sprites/sheet.png"], "UTF-8"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(arguments: list[str], words: str) -> None:
    done = tokvid(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert words in done.stderr


def test_debug_shows_the_traceback() -> None:
    done = tokvid("recipes", "show", "nothing", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr and "ConfigError" in done.stderr


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: object) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_verb(monkeypatch, fail)


def test_a_message_of_several_lines_is_printed_as_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> int:
        raise ConfigError("wrong\n  in two lines")

    assert run_verb(monkeypatch, fail) == 2
    assert capsys.readouterr().err == "error: wrong in two lines\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device here that is always full")
def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def write(arguments: object) -> int:
        with Path("/dev/full").open("w") as file:
            file.write("x")
        return 0

    def wrap(arguments: object) -> int:
        try:
            return write(arguments)
        except OSError as error:
            raise RuntimeError("a library's own error") from error

    for fail in (write, wrap):
        assert run_verb(monkeypatch, fail) == 2
        assert capsys.readouterr().err.startswith("error: the disk is full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device here that is always full")
def test_a_copy_to_a_full_disk_names_the_copy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # What is written beside the copy lies on a disk that is full.
    monkeypatch.setattr("tokvid.cli.recipes.atomic_path", lambda path: contextlib.nullcontext(Path("/dev/full")))
    assert command.main(["recipes", "copy", next(iter(shipped_recipes())), str(tmp_path / "mine.yaml")]) == 2
    assert capsys.readouterr().err.startswith(f"error: the disk is full while writing {tmp_path / 'mine.yaml'}:")
    beside = OSError(errno.ENOSPC, "No space left on device", "shipped.yaml", None, "here/mine.yaml.tmp")
    assert "while writing here/mine.yaml:" in (command.one_line(beside) or "")


def test_a_missing_file_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(monkeypatch, lambda arguments: len(Path("no/such/file").read_text())) == 2
    assert capsys.readouterr().err == f"error: no/such/file: {os.strerror(errno.ENOENT)}\n"


def test_overrides_reach_the_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[object] = []

    def run(arguments: object) -> int:
        seen.append(arguments)
        return 0

    assert run_verb(monkeypatch, run, "--a.b=1", "--steps", "3", "--seed=2") == 0
    assert seen[0].overrides == ["--a.b=1", "--seed=2"]  # type: ignore[attr-defined]
    assert seen[0].steps == 3  # type: ignore[attr-defined]
    assert run_verb(monkeypatch, run, "--seed", "2") == 2
    assert "--a.b=value" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_is_one_line_and_exit_code_130(tmp_path: Path) -> None:
    program = (
        "import sys, time, types\n"
        "from tokvid.cli import main as command\n"
        "module = types.ModuleType('tokvid.cli.trial')\n"
        "module.add_arguments = lambda parser: None\n"
        "module.run = lambda arguments: (print('ready', flush=True), time.sleep(60))\n"
        "sys.modules['tokvid.cli.trial'] = module\n"
        "command.VERBS['trial'] = command.Verb('tokvid.cli.trial', '')\n"
        "sys.exit(command.main(['trial']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stderr == "interrupted: stopped by Ctrl-C\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows answers a write to a closed pipe with another error")
def test_a_closed_pipe_is_quiet() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "tokvid", "recipes", "list", "--json"],
        cwd=ROOT,
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write_end)
    assert done.stderr == ""
    assert done.returncode == command.EXIT_BROKEN_PIPE


def test_info_tells_about_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["tokvid"] == __version__
    assert facts["cores"] >= 1 and isinstance(facts["bf16_is_fast"], bool)
    assert command.main(["info"]) == 0
    assert "bf16 is fast" in capsys.readouterr().out


def test_info_tells_about_a_video(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", Video(frames=np.zeros((5, 32, 48, 3), np.uint8), fps=10.0))
    done = tokvid("info", "clip.mp4", "--json", cwd=tmp_path)
    facts = json.loads(done.stdout)
    assert (facts["width"], facts["height"], facts["fps"]) == (48, 32, 10.0)
    assert "width" in tokvid("info", "clip.mp4", cwd=tmp_path).stdout


def test_recipes_are_listed_shown_and_copied(tmp_path: Path) -> None:
    recipes = shipped_recipes()
    listed = json.loads(tokvid("recipes", "list", "--json", cwd=tmp_path).stdout)
    assert [entry["name"] for entry in listed] == list(recipes)
    for name, path in list(recipes.items())[:1]:
        assert tokvid("recipes", "show", name, cwd=tmp_path).stdout == path.read_text(encoding="utf-8")
        assert tokvid("recipes", "copy", name, cwd=tmp_path).returncode == 0
        copied = tmp_path / path.name
        assert copied.read_bytes() == path.read_bytes()
        copied.write_text("mine", encoding="utf-8")
        refused = tokvid("recipes", "copy", name, cwd=tmp_path)
        assert refused.returncode == 2 and "-f to overwrite" in refused.stderr
        assert copied.read_text(encoding="utf-8") == "mine"
        assert tokvid("recipes", "copy", name, "-f", cwd=tmp_path).returncode == 0
        assert copied.read_bytes() == path.read_bytes()
