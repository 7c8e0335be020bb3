"""``tokvid chat``: at a real terminal, at pipes, in one shot and by a script; what is wrong is a line each."""

from __future__ import annotations

import codecs
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.lm.tiny import build_model, build_tokenizer
from tests.lm.tiny_chat import build
from tokvid import Video, write_video
from tokvid.cli import main as command
from tokvid.cli.chat_session import ChatSession
from tokvid.cli.chat_terminal import completions, printable
from tokvid.video import probe_video
from tokvid_lm import VideoLM
from tokvid_tokenizers import load_codec

PIXEL = re.compile(r"\x1b\[38;2;\d+;\d+;\d+;48;2;\d+;\d+;\d+m\u2580")
SEED = ("--seed", "3", "--max-words", "12", "--temperature", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that is likely to draw a video."""
    folder = tmp_path_factory.mktemp("lm") / "talker"
    build().save_pretrained(folder)
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = np.random.default_rng(0).integers(0, 256, (20, 24, 24, 3), dtype=np.uint8)
    write_video(tmp_path / "clip.mp4", Video(frames=frames, fps=8.0))
    return tmp_path / "clip.mp4"


def seed_that_draws(model: Path, folder: Path) -> int:
    for seed in range(40):
        out = folder / f"try-{seed}"
        own = ("--seed", str(seed), "--temperature", "1", "--max-words", "40")
        assert command.main(["chat", str(model), "-p", "hello", *own, "--out", str(out)]) == 0
        if (out / "clip-001.mp4").is_file():
            return seed
    raise AssertionError("no seed of 40 draws")


def test_one_shot_writes_a_clip_that_says_what_made_it(
    model: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = seed_that_draws(model, tmp_path)
    path = tmp_path / f"try-{seed}" / "clip-001.mp4"
    assert str(path) in capsys.readouterr().out
    facts = json.loads(probe_video(path).metadata["tokvid"])
    assert facts["model"] == "talker" and facts["model_id"].startswith("tokvid-lm-") and facts["seed"] == seed
    assert len(facts["prompt_sha256"]) == 64 and facts["versions"]["tokvid"] and facts["codec"]
    assert command.main(["info", str(path)]) == 0
    assert facts["model_id"] in capsys.readouterr().out
    # A clip before the words is another prompt.
    assert command.main(["chat", str(model), "-p", "hello", "--video", str(clip), *SEED]) == 0
    assert "of 2.5 s the model reads 0.6 s from 0 s on" in capsys.readouterr().err


@pytest.mark.parametrize("lines", [1, 3])
def test_a_script_comes_back_whole(
    lines: int, model: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, out = tmp_path / "dialog.jsonl", tmp_path / "out"
    shown = [{"type": "text", "text": "see: <|video|>"}, {"type": "video", "path": "clip.mp4", "start": 0.5}]
    messages = [
        {"role": "user", "content": shown},
        {"role": "user", "content": "what was\u2028it?"},
        {"role": "assistant", "content": "a fox"},
        {"role": "user", "content": "and now?"},
    ][: 1 if lines == 1 else None]
    script.write_text("\n".join(json.dumps(message, ensure_ascii=False) for message in messages) + "\n")
    assert command.main(["chat", str(model), "--script", str(script), "--out", str(out), *SEED]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    written = [json.loads(line) for line in (out / "dialog.jsonl").read_text().split("\n")[:-1]]
    assert printed == written
    assert [line["role"] for line in written] == ["user", "assistant"] * lines
    assert written[0]["content"][0] == shown[0]
    assert (out / written[0]["content"][1]["path"]).samefile(clip)
    if lines == 3:
        assert written[2:4] == messages[1:3] and written[4] == messages[3]
    for line in written[1::2]:
        for piece in line["content"] if isinstance(line["content"], list) else []:
            assert piece["type"] == "text" or (out / piece["path"]).is_file()
    # What came out can go in again: every answer stands in it, and what was forgotten is told anew.
    again, replayed = tmp_path / "again", out / "dialog.jsonl"
    told = [line | {"forgotten_turns": 2} if line["role"] == "assistant" else line for line in written]
    (out / "told.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    assert command.main(["chat", str(model), "--script", str(out / "told.jsonl"), "--out", str(tmp_path / "told")]) == 0
    assert (tmp_path / "told" / "dialog.jsonl").read_text() == replayed.read_text()
    assert command.main(["chat", str(model), "--script", str(out / "dialog.jsonl"), "--out", str(again)]) == 0
    assert (again / "dialog.jsonl").read_text() == (out / "dialog.jsonl").read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hello", "line 2: is no JSON"),
        ('{"role": "system", "content": "x"}', "line 2: a message is"),
        ('{"role": "user", "content": []}', "line 2: there is nothing to answer"),
        ('{"role": "user", "content": 3}', "line 2: the content of a message"),
        (
            '{"role": "user", "content": "x", "contents": "y"}',
            "line 2: a message of the user has no",
        ),
        ('{"role": "user", "content": ""}', "line 2: there is nothing to answer"),
        ('{"role": "user", "content": [{"type": ["text"], "text": "x"}]}', "line 2: a piece of a message"),
        ("[" * 100_000, "line 2: is no JSON"),
        ('{"role": "user", "content": [{"type": "sound"}]}', "line 2: a piece of a message"),
        ('{"role": "user", "content": [{"type": "video", "path": "none.mp4"}]}', "line 2: "),
        ('{"role": "user", "content": [{"type": "video", "path": "clip.mp4", "start": "a"}]}', "seconds"),
        ('{"role": "user", "content": [{"type": "video", "path": "clip.mp4", "start": null}]}', "seconds"),
        ('{"role": "user", "content": [{"type": "video", "path": "clip.mp4", "start": NaN}]}', "an end after it"),
        (json.dumps({"role": "user", "content": "ha " * 3000}), "say less"),
    ],
)
def test_a_line_of_a_script_that_is_wrong_is_named(
    line: str, message: str, model: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, out = tmp_path / "dialog.jsonl", tmp_path / "out"
    script.write_text('{"role": "user", "content": "hello"}\n' + line + "\n")
    assert command.main(["chat", str(model), "--script", str(script), "--out", str(out), *SEED]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
    # What can be seen before a model is there is said before anything is answered.
    assert (out / "dialog.jsonl").is_file() == (message == "say less")


def test_a_script_that_failed_at_its_first_line_can_be_given_again(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, out = tmp_path / "dialog.jsonl", tmp_path / "out"
    arguments = ["chat", str(model), "--script", str(script), "--out", str(out), *SEED]
    script.write_text("\n \n")
    assert command.main(arguments) == 2
    assert "holds no message" in capsys.readouterr().err
    script.write_text(json.dumps({"role": "user", "content": "ha " * 3000}))
    assert command.main(arguments) == 2
    script.write_text(json.dumps({"role": "user", "content": "hello"}))
    assert command.main(arguments) == 0
    assert command.main(arguments) == 2
    assert f"{out / 'dialog.jsonl'} exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--guidance", "nan", "--guidance: guidance_scale must be finite and at least 0, got nan"),
        ("--guidance", "-1", "--guidance: guidance_scale must be finite and at least 0, got -1.0"),
        ("--temperature", "0", "--temperature: temperature must be above 0, got 0.0"),
        ("--max-words", "0", "--max-words must be at least 1, got 0"),
        ("--steps", "0", "--steps: steps must be at least 1, got 0"),
        ("--seed", "-1", "--seed must be at least 0, got -1"),
        ("--mode", "frames", "--mode: mode is one of next_token, maskgit, frame, got 'frames'"),
    ],
)
def test_an_option_that_no_model_takes_is_named_before_one_is_loaded(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["chat", "no-such-model", "-p", "hello", option, value]) == 2
    assert message in capsys.readouterr().err
    if option != "--max-words":
        assert command.main(["generate", "a fox", "--model", "no-such-model", option, value, "-o", "none.mp4"]) == 2
        assert message in capsys.readouterr().err


def test_what_cannot_talk_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = tmp_path / "silent"
    lm = VideoLM.extend(build_model("llama"), codec=load_codec("preset:tiny"), tokenizer=build_tokenizer())
    lm.save_pretrained(silent)
    assert command.main(["chat", str(silent), "-p", "hello"]) == 2
    assert "has no chat template" in capsys.readouterr().err
    several = (["-p", "x", "--web"], ["--web", "--steps", "3"], ["--port", "80"], ["--seed", "-1"])
    for wrong in (["--script", "no-such.jsonl"], ["--video", "clip.mp4"], ["-p", "\udcff"], *several):
        assert command.main(["chat", str(silent), *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert command.main(["chat", "no-such-model", "--web", "--port", "99999"]) == 2
    assert "--port must be from 1 to 65535, got 99999" in capsys.readouterr().err, "before the model is loaded"


def test_a_codec_that_is_missing_is_a_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    folder = tmp_path / "torn"
    shutil.copytree(model, folder)
    shutil.rmtree(folder / "codec")
    assert command.main(["chat", str(folder), "-p", "hello"]) == 2
    error = capsys.readouterr().err
    assert "codec" in error and error.count("\n") == 1


def test_pipes_are_a_conversation_without_pictures(model: Path, clip: Path, tmp_path: Path) -> None:
    talk = subprocess.run(
        [sys.executable, "-m", "tokvid", "chat", str(model), "--out", str(tmp_path / "out"), *SEED],
        input=b"hello\n/retry\n/video clip.mp4 0.5-\nwhat is it?\n/video none.mp4\n\xff\xfe\n/save kept\n/nonsense\n"
        b"/image clip.mp4\n/quit\n",
        capture_output=True,
        cwd=tmp_path,
        timeout=300,
    )
    errors = talk.stderr.decode()
    assert "clip.mp4: of 2.0 s the model reads 0.6 s from 0.5 s on" in errors and ", scaled to 16x16, with" in errors
    assert "clip.mp4: its first picture of 24x24, scaled to 16x16, with the next message" in errors
    assert "once more, with seed 4\n" in errors, "words are drawn, so they differ"
    assert talk.returncode == 2, errors  # some of it could not be done
    assert not PIXEL.search(talk.stdout.decode())
    assert all(part in errors for part in ("none.mp4", "no UTF-8", "no command", "4 turns are in kept"))
    assert "Traceback" not in errors
    kept = json.loads((tmp_path / "kept" / "conversation.json").read_text())
    assert [turn["role"] for turn in kept["turns"]] == ["user", "assistant"] * 2
    assert kept["turns"][2]["content"][0]["type"] == "video"


class Person:
    """Somebody at a terminal of 80x24."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self.terminal, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "XDG_STATE_HOME": str(folder), "COLUMNS": "80"}
        environment |= {"LINES": "24", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tokvid", "chat", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def reads_until(self, pattern: str, seconds: float = 120) -> str:
        """What the terminal shows up to a pattern."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            if time.monotonic() > end or not select.select([self.terminal], [], [], 1)[0]:
                assert time.monotonic() < end, f"waited for {pattern!r}, saw {self.seen[-2000:]!r}"
                continue
            try:
                self.seen += self.decoder.decode(os.read(self.terminal, 65536))
            except OSError:
                break
        assert found, f"ended before {pattern!r}: {self.seen[-2000:]!r}"
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def types(self, text: str) -> None:
        os.write(self.terminal, text.encode())


@pytest.fixture
def person(model: Path, tmp_path: Path) -> Iterator[Person]:
    own = ("--temperature", "1", "--max-words", "40")
    someone = Person([str(model), "--out", str(tmp_path / "out"), *own], tmp_path)
    yield someone
    someone.process.kill()
    someone.process.wait()
    os.close(someone.terminal)


def test_a_person_at_a_terminal(person: Person, model: Path, clip: Path, tmp_path: Path) -> None:
    person.reads_until("/help lists the commands")
    person.reads_until("it knows dots that move")
    person.reads_until("> ")
    person.types("/hel\t\n")
    person.reads_until("/quit")
    person.reads_until("it knows dots that move")
    person.types(f"/seed {seed_that_draws(model, tmp_path)}\n")
    person.reads_until("the seed is")
    person.types("hello\n")
    before = person.reads_until(r"clip-001\.mp4")
    assert len(PIXEL.findall(before)) >= 16 * 8 * 5  # five frames of 16x16, two rows of pixels a line
    assert "\x1b[8A" in before  # in place
    person.reads_until("> ")
    # Many pasted lines are one message, which is too long, and the conversation survives.
    person.types("\n".join(["a line that was pasted"] * 200) + "\n")
    shown = person.reads_until("say less", seconds=60)
    assert shown.count("error:") == 1
    person.types("/retry\n")
    person.reads_until("once more, with seed")
    person.types("\x03")  # wherever it is
    person.types("/save kept\n")
    person.reads_until(r"2 turns are in kept")
    person.types("/quit\n")
    assert person.process.wait(timeout=60) == 0
    assert "hello" in (tmp_path / "tokvid" / "chat_history").read_text()


def test_what_is_saved_says_what_is_missing(model: Path, tmp_path: Path) -> None:
    lm = VideoLM.from_pretrained(model)
    lm.model.config.max_position_embeddings = 128
    session = ChatSession(lm, name="talker", max_new_tokens=4)
    for _ in range(6):
        list(session.say("what i say in every turn"))
    kept, forgotten = len(session.chat.turns), session.chat.forgotten
    assert forgotten and kept + forgotten == 12
    (line,) = session.command(f"/save {tmp_path / 'kept'}").lines
    assert line == (
        f"{kept} turns are in {tmp_path / 'kept'}; the {forgotten} before them, which the model has forgotten, are not"
    )
    (line,) = session.command("/retry").lines
    assert line.endswith("words are the likeliest, so only a clip differs")


def test_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "fox.mp4").touch()
    assert completions("/vi", "/vi") == ["/video"]
    assert completions("hello", "hello") == []
    assert completions("/video fi", "fi") == ["films/"]
    assert completions("/video films/f", "films/f") == ["films/fox.mp4"]
    assert completions("/mode m", "m") == ["maskgit"]
    assert completions("/seed 1", "1") == [] and completions("/video none/x", "none/x") == []


def test_what_would_command_a_terminal_is_not_printed() -> None:
    assert printable("a\x1b[2Jb\x07\n\tä\x9b") == "a\ufffd[2Jb\ufffd\n\tä\ufffd"
