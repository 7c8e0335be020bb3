"""``tokvid evaluate MODEL dialogues``: every answer is asked for after the right ones, and judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.lm.tiny_chat import build
from tokvid.cli import main as command
from tokvid.cli.evaluate_dialogues import GROUPS, Answered, ask, count, judge
from tokvid.data.sprites.dialogues import SpriteDialogues
from tokvid.data.sprites.oracle import Oracle
from tokvid.data.sprites.world import SpriteWorldConfig
from tokvid_lm import VideoSegment
from tokvid_lm.chat import Chat

WORLD = SpriteWorldConfig()


def right_answers(dialogues: int) -> list[Answered]:
    source = SpriteDialogues(WORLD, "held_out", dialogues)
    answers = []
    for number in range(dialogues):
        made = source.made(number)
        for turn, asked in zip(made.dialogue.turns[1::2], made.asked, strict=True):
            clips = tuple(made.dialogue.clips[piece] for piece in turn.pieces if isinstance(piece, int))
            answers.append(Answered(dialogue=number, said="", asked=asked, text=asked.text, clips=clips))
    return answers


def test_right_answers_are_right_and_wrong_ones_are_not() -> None:
    oracle, answers = Oracle(WORLD), right_answers(40)
    figures = count(answers, judge(oracle, answers))
    groups = {"draws", "describes", "describes_again", "edits", "questions"}
    assert set(figures) == groups | {"edits_in_words", "continuations_joined"}
    assert all(figure["share"] == 1.0 for figure in figures.values())
    swapped = [
        Answered(dialogue=0, said="", asked=one.asked, text=other.text, clips=other.clips)
        for one, other in zip(answers, np.roll(np.array(answers, object), 5), strict=True)
    ]
    figures = count(swapped, judge(oracle, swapped))
    assert all(figures[name]["share"] < 0.4 for name in groups)
    doubled = [
        Answered(dialogue=0, said="", asked=each.asked, text=each.text, clips=each.clips * 2)
        for each in answers
        if each.clips
    ]
    assert not any(right for right, _ in judge(oracle, doubled))


def test_every_answer_is_asked_for_after_the_right_ones() -> None:
    source = SpriteDialogues(SpriteWorldConfig(size=(16, 16), num_frames=5), "held_out", 4)
    chat = Chat(build(), mode="maskgit", max_new_tokens=3)
    answers = ask(chat, source)
    made = [source.made(number) for number in range(4)]
    assert [each.dialogue for each in answers] == [n for n, each in enumerate(made) for _ in each.asked]
    assert [each.asked for each in answers] == [asked for each in made for asked in each.asked]
    # What stands at the end are the right turns of the last dialogue.
    shown = [sum(isinstance(part, VideoSegment) for part in turn.segments) for turn in chat.turns]
    assert shown == [sum(isinstance(piece, int) for piece in turn.pieces) for turn in made[-1].dialogue.turns]


def test_an_answer_of_many_clips_is_wrong_and_the_evaluation_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such an answer may fill the context, and then forget what it was asked about."""
    source = SpriteDialogues(SpriteWorldConfig(size=(16, 16), num_frames=5), "held_out", 2)
    lm = build()
    chat = Chat(lm, mode="maskgit", max_new_tokens=400)
    monkeypatch.setattr(chat, "_next_id", lambda *_: lm.vocabulary.open_id)
    answers = ask(chat, source)
    assert len(answers) == sum(len(source.made(number).asked) for number in range(2))
    assert all(len(each.clips) == 2 for each in answers)


def test_the_command_writes_figures_answers_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tmp_path / "talker", tmp_path / "out"
    build().save_pretrained(model)
    assert command.main(["evaluate", str(model), "dialogues", "--clips", "3", "--mode", "maskgit", "-o", str(out)]) == 0
    assert "dialogues" in capsys.readouterr().out
    facts = json.loads((out / "evaluation.json").read_text())
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert facts["figures"]["dialogues"] == 3 and facts["mode"] == "maskgit"
    groups = [facts["figures"][name] for name in GROUPS if name in facts["figures"]]
    assert sum(figure["count"] for figure in groups) == len(rows)
    assert sum(figure["right"] for figure in groups) == sum(row["right"] for row in rows)
    assert (out / "report.html").is_file()
    for wrong in (["--size", "16x16"], ["--clips", "0"], ["--x264"], ["--mode", "frame", "--mode", "maskgit"]):
        other = str(tmp_path / "other")
        assert command.main(["evaluate", str(model), "dialogues", *wrong, "-o", other]) == 2
        assert capsys.readouterr().err.count("\n") == 1
