"""``tokvid evaluate MODEL dialogues``: held-out dialogues over the sprite world, every answer judged by the oracle;
``dialogues-far``: in wordings unlike any of training.

Each turn of the assistant is asked for with the right turns before it, so that one mistake is counted once.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tokvid.atomic import write_text
from tokvid.cli.evaluate import refuse_options
from tokvid.cli.progress import counted
from tokvid.errors import DataError, ModelError
from tokvid.metrics.proportion import Proportion

if TYPE_CHECKING:
    from tokvid.data.sprites.dialogue_answers import Asked
    from tokvid.data.sprites.dialogues import SpriteDialogues
    from tokvid.data.sprites.oracle import Sight
    from tokvid_lm import VideoLM
    from tokvid_lm.chat import Chat

DIALOGUES = ("dialogues", "dialogues-far")
GROUPS = {
    "draws": ("draw",),
    "describes": ("describe",),
    "describes_again": ("again",),
    "edits": ("change", "continue"),
    "questions": ("question",),
}
"""What is counted together."""
_JOINED = 2.0  # pixels: a continuation that begins so near to where the last clip ended joins it
_SHOWN = 24
_MOST_IDS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """An answer: what the user said (a clip as ``[video]``), what was asked for, what the model said, and its clips
    uint8 ``[T,H,W,3]``."""

    dialogue: int
    said: str
    asked: Asked
    text: str
    clips: tuple[npt.NDArray[np.uint8], ...]


def run_dialogues(arguments: argparse.Namespace, output: Path) -> int:
    """Ask, judge, write, and print the figures."""
    unused = ("candidates", "completed", "batch_size", "text", "base", "all", "lpips", "x264", "size", "frames", "fps")
    refuse_options(arguments, unused, "has no use for dialogues")
    if len(arguments.mode) > 1:
        raise DataError("dialogues are held in one mode at a time: give --mode once")
    if arguments.clips < 1:
        raise DataError(f"--clips, here the number of dialogues, must be at least 1, got {arguments.clips}")
    from transformers.utils import logging as transformers_logging

    from tokvid.data.sprites.dialogues import SpriteDialogues
    from tokvid.data.sprites.oracle import Oracle
    from tokvid.data.sprites.world import SpriteWorldConfig
    from tokvid.provenance import provenance
    from tokvid.runtime import default_device, loading_dtype, prepare
    from tokvid_lm import VideoLM
    from tokvid_lm.chat import Chat

    transformers_logging.disable_progress_bar()
    seed = arguments.seed or 0
    prepare(seed)
    lm = VideoLM.from_pretrained(arguments.model, dtype=loading_dtype()).to(default_device())
    world = SpriteWorldConfig(**_shape(lm))
    source = SpriteDialogues(world, "held_out", arguments.clips, far=arguments.data == "dialogues-far")
    mode = arguments.mode[0] if arguments.mode else None
    chat = Chat(lm, mode=mode, seed=seed, max_new_tokens=_MOST_IDS)
    began = time.perf_counter()
    with counted("dialogues") as progress:
        answers = ask(chat, source, progress)
    seconds = time.perf_counter() - began
    verdicts = judge(Oracle(world), answers)
    figures = count(answers, verdicts) | {"dialogues": len(source), "seconds_a_dialogue": seconds / len(source)}
    facts = {
        "model": Path(arguments.model).name,
        "codec_id": lm.codec.codec_id,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "wordings": source.wording,
        "mode": None if chat.sampling is None else chat.sampling.mode,
        "figures": figures,
        **provenance(seed),
    }
    write_text(output / "evaluation.json", json.dumps(facts, indent=2) + "\n")
    rows = [_row(each, *verdict) for each, verdict in zip(answers, verdicts, strict=True)]
    write_text(output / "answers.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    _page(answers, rows, facts, world.fps).save(output / "report.html")
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:<20}{_in_words(value)}")
        print(output / "report.html")
    return 0


def ask(chat: Chat, source: SpriteDialogues, progress: Callable[[int, int], None] | None = None) -> list[Answered]:
    """Every answer of all dialogues, each after the right turns before it."""
    from tokvid.frames import to_model, to_pictures
    from tokvid_lm.chat import Forgotten, Said, Shown
    from tokvid_lm.segments import Segment, TextSegment, VideoSegment

    answers = []
    for number in range(len(source)):
        made = source.made(number)
        chat.clear()

        def segment(piece: str | int, clips: tuple[npt.NDArray[np.uint8], ...] = made.dialogue.clips) -> Segment:
            if isinstance(piece, str):
                return TextSegment(piece)
            return VideoSegment(frames=to_model(clips[piece][None]), num_frames=source.num_frames, fps=source.fps)

        turns = made.dialogue.turns
        for user, right, asked in zip(turns[::2], turns[1::2], made.asked, strict=True):
            said = [segment(piece) for piece in user.pieces]
            text, clips = "", []
            for event in chat.say(said):
                if isinstance(event, Said):
                    text += event.text
                elif isinstance(event, Shown):
                    assert event.segment.frames is not None
                    clips.append(to_pictures(event.segment.frames)[0])
                elif isinstance(event, Forgotten):
                    raise ModelError(_too_long(number))
                if len(clips) > 1:  # which is wrong, however many follow
                    break
            words = " ".join(piece if isinstance(piece, str) else "[video]" for piece in user.pieces)
            answers.append(Answered(dialogue=number, said=words, asked=asked, text=text, clips=tuple(clips)))
            if chat.take_answer([segment(piece) for piece in right.pieces]):
                raise ModelError(_too_long(number))
        if progress is not None:
            progress(number + 1, len(source))
    return answers


def _too_long(number: int) -> str:
    return (
        f"dialogue {number} does not fit the model's context, so it would be asked about what it has forgotten: take a"
        " model with more positions"
    )


def judge(oracle: Any, answers: list[Answered]) -> list[tuple[bool, Sight | None]]:
    """Of each answer whether it is right, and what was seen in its clip; more than one clip is wrong."""
    from tokvid.data.sprites.dialogue_answers import is_right

    single = [each.clips[0] for each in answers if len(each.clips) == 1]
    sights = iter(oracle.look(np.stack(single)) if single else [])
    found = []
    for each in answers:
        sight = next(sights) if len(each.clips) == 1 else None
        found.append((len(each.clips) < 2 and is_right(each.asked, each.text, sight), sight))
    return found


def count(answers: list[Answered], verdicts: list[tuple[bool, Sight | None]]) -> dict[str, Any]:
    """Shares by group; of edits in how many the words alone are right, and how many right continuations begin where the
    clip before ended, to two pixels."""
    from tokvid.data.sprites.dialogue_answers import gap_of

    figures: dict[str, Any] = {}
    for group, kinds in GROUPS.items():
        right = [verdict for each, (verdict, _) in zip(answers, verdicts, strict=True) if each.asked.kind in kinds]
        if right:
            figures[group] = Proportion(right=sum(right), count=len(right)).figures()
    said = [each.text.strip() == each.asked.text for each in answers if each.asked.kind in ("change", "continue")]
    if said:
        figures["edits_in_words"] = Proportion(right=sum(said), count=len(said)).figures()
    right_ones = [(each.asked, sight) for each, (right, sight) in zip(answers, verdicts, strict=True) if right]
    gaps = [gap for asked, sight in right_ones if sight is not None and (gap := gap_of(asked, sight)) is not None]
    if gaps:
        joined = sum(gap <= _JOINED for gap in gaps)
        figures["continuations_joined"] = Proportion(right=joined, count=len(gaps)).figures()
    return figures


def _shape(lm: VideoLM) -> dict[str, Any]:
    settings = lm.settings
    if None in (settings.num_frames, settings.height, settings.width, settings.fps):
        raise ModelError("dialogues are about clips of one size, and this model was trained on several")
    return {"size": (settings.height, settings.width), "num_frames": settings.num_frames, "fps": settings.fps}


def _row(answer: Answered, right: bool, sight: Sight | None) -> dict[str, Any]:
    from tokvid.data.sprites.verdicts import describe

    return {
        "dialogue": answer.dialogue,
        "kind": answer.asked.kind,
        "said": answer.said,
        "wanted": answer.asked.text,
        "answer": answer.text,
        "clips": len(answer.clips),
        "seen": None if sight is None else describe(sight),
        "right": right,
    }


def _in_words(value: Any) -> str:
    if not isinstance(value, dict):
        return f"{value:.4g}"
    low, high = value["interval_95"]
    return f"{value['share']:.3f} [{low:.3f}, {high:.3f}], {value['right']} of {value['count']}"


def _page(answers: list[Answered], rows: list[dict[str, Any]], facts: dict[str, Any], fps: float) -> Any:
    from tokvid.report.page import Card, Figure, Report
    from tokvid.report.pictures import animated

    report = Report(
        "Dialogues", f"{facts['model']}, {facts['mode']}: {facts['figures']['dialogues']} held-out dialogues"
    )
    report.figures([Figure(name=name, value=_in_words(value)) for name, value in facts["figures"].items()])
    shown = [n for n, each in enumerate(answers) if each.clips][:_SHOWN]
    report.section("Drawn in answers").cards(
        [
            Card(
                uri=animated(answers[n].clips[0], fps),
                caption=f"{answers[n].said} -> {answers[n].text}",
                verdict=rows[n]["right"],
                detail=rows[n]["seen"] or "",
            )
            for n in shown
        ]
    )
    columns = ["dialogue", "kind", "said", "wanted", "answer", "seen", "right"]
    report.section("Every answer").table(columns, [[str(row[name]) for name in columns] for row in rows])
    return report.facts({name: value for name, value in facts.items() if name != "figures"}, "Versions and settings")
