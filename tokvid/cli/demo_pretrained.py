"""``tokvid demo --pretrained``: what the model that comes with tokvid can do, on clips that it never saw."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tokvid.atomic import write_text
from tokvid.cli.clip_options import SPRITES
from tokvid.cli.demo_report import write_sheet, write_videos
from tokvid.cli.evaluate import load_clips
from tokvid.cli.judging import JudgedClip, judge, oracle_of
from tokvid.cli.stages import METRICS_FILE

if TYPE_CHECKING:
    from tokvid.data.clips import ClipArray
    from tokvid.data.sprites.oracle import Oracle
    from tokvid_lm import VideoLM
    from tokvid_lm.completion import Completion

MODEL = "tokvid-sprites-lm"
_CLIPS, _TO_COMPLETE, _TO_REFINE = 4, 2, 1
"""Few enough for half a minute of two cores."""
_COMPLETED = {"continuation": "frame", "interpolation": "maskgit", "inpainting": "maskgit"}
_TALK = ("what happens here?", "make it move right", "what moved in the first video?")
"""Said about the first clip of one sprite, which is shown with the first message: of two, which is "it"?"""
Pictures = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What was said and answered, and the clip of the answer, if it has one."""

    said: str
    text: str
    frames: Pictures | None


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    mode: str
    frames: Pictures
    judged: list[JudgedClip]
    seconds: float


def run_pretrained(output: Path, *, began: float) -> int:
    """Draw, complete and caption; write a page, a picture and mp4 files into ``output``, and print where they are.

    ``began``: what ``time.perf_counter()`` said when the command began.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    from tokvid.provenance import provenance
    from tokvid.runtime import default_device, prepare
    from tokvid_lm import VideoLM

    transformers_logging.disable_progress_bar()
    prepare(0)
    lm = VideoLM.from_pretrained(MODEL, dtype=torch.float32).to(default_device())
    settings = lm.settings
    wanted: dict[str, Any] = {
        "size": (settings.height, settings.width),
        "num_frames": settings.num_frames,
        "fps": settings.fps,
    }
    clips = load_clips(SPRITES, wanted, _CLIPS)
    oracle = oracle_of(clips)
    drawn = [_draw(lm, sampling.mode, clips, oracle) for sampling in settings.sampling]
    completed = [_complete(lm, clips, task) for task in _COMPLETED]
    captions = _captions(lm, clips)
    talk = _talk(lm, clips)
    refined = _refined(lm, clips)
    facts: dict[str, Any] = {
        "model": MODEL,
        "right": {each.mode: sum(clip.right for clip in each.judged) for each in drawn},
        "clips": _CLIPS,
        "seconds_a_clip": {each.mode: each.seconds / _CLIPS for each in drawn},
        "gain_db": {each.task: each.psnr - each.guess_psnr for each in completed},
        "seconds": time.perf_counter() - began,
        "provenance": provenance(0),
    }
    _page(clips, drawn, refined, completed, captions, talk, facts).save(output / "report.html")
    first = drawn[0]
    write_sheet(output / "sheet.png", first.frames, list(clips.captions))
    write_videos(output / "generated", first.frames, list(clips.captions), fps=clips.fps, made_by=facts["provenance"])
    write_text(output / METRICS_FILE, json.dumps(facts, indent=2) + "\n")
    for each in drawn:
        right = f"{facts['right'][each.mode]} of {_CLIPS} right"
        print(f"drawn, {each.mode:<20}{right:<14}{each.seconds / _CLIPS:.2f} s a clip")
    for part in completed:
        print(f"{part.task + ', ' + part.mode:<27}{part.psnr - part.guess_psnr:+.1f} dB against a guess")
    for caption in captions[:2]:
        print(f"says of a clip             {caption}")
    for answer in talk:
        print(f"{answer.said:<31}{answer.text}{'' if answer.frames is None else ', and draws it'}")
    for name in ("report.html", "sheet.png", "generated", METRICS_FILE):
        print(output / name)
    return 0


def _draw(lm: VideoLM, mode: str, clips: ClipArray, oracle: Oracle) -> _Drawn:
    from tokvid_lm.evaluation import draw_clips

    # One candidate: several take as many times as long, and this is to be seen in half a minute.
    drawn = draw_clips(lm, clips.captions, mode=mode, candidates=1)
    _, judged = judge(oracle, clips.captions, drawn.frames)
    return _Drawn(mode=mode, frames=drawn.frames, judged=judged, seconds=drawn.seconds)


def _complete(lm: VideoLM, clips: ClipArray, task: str) -> Completion:
    from tokvid_lm.completion import complete_clips

    return complete_clips(
        lm, clips.frames[:_TO_COMPLETE], clips.captions[:_TO_COMPLETE], task=task, mode=_COMPLETED[task]
    )


def _refined(lm: VideoLM, clips: ClipArray) -> Pictures | None:
    """The first clips that were drawn in the model's first mode, with its diffusion head, if it has one."""
    from tokvid.frames import to_pictures
    from tokvid_lm import TextSegment, VideoSegment

    if lm.diffusion_head is None:
        return None
    prompts = [[TextSegment(caption)] for caption in clips.captions[:_TO_REFINE]]
    segments = lm.generate(prompts, candidates=1, hybrid=True)
    frames = [segment.frames for segment in segments if isinstance(segment, VideoSegment)]
    return np.concatenate([to_pictures(frame) for frame in frames if frame is not None])


def _captions(lm: VideoLM, clips: ClipArray) -> list[str]:
    from tokvid.frames import to_model
    from tokvid_lm import TextSegment, VideoSegment

    prompts = [[VideoSegment(frames=to_model(clip[None]).to(lm.model.device))] for clip in clips.frames]
    written = lm.generate(prompts, output="text", top_k=1)
    return [segment.text for segment in written if isinstance(segment, TextSegment)]


def _talk(lm: VideoLM, clips: ClipArray) -> list[_Answer]:
    """A conversation about a clip."""
    from tokvid.frames import to_model, to_pictures
    from tokvid_lm import TextSegment, VideoSegment
    from tokvid_lm.chat import Chat, Said, Shown
    from tokvid_lm.segments import Segment

    chat = Chat(lm)
    number = _clip_to_talk_about(clips)
    shown: list[Segment] = [VideoSegment(frames=to_model(clips.frames[number : number + 1]), fps=clips.fps)]
    answers = []
    for said in _TALK:
        text, frames = "", None
        for event in chat.say([*shown, TextSegment(said)]):
            if isinstance(event, Said):
                text += event.text
            elif isinstance(event, Shown) and event.segment.frames is not None:
                frames = to_pictures(event.segment.frames)[0]
        answers.append(_Answer(said=said, text=text, frames=frames))
        shown = []
    return answers


def _clip_to_talk_about(clips: ClipArray) -> int:
    from tokvid.data.sprites.captions import parse_caption

    counts = [len(parse_caption(caption).sprites) for caption in clips.captions]
    return counts.index(1) if 1 in counts else 0


def _page(
    clips: ClipArray,
    drawn: Sequence[_Drawn],
    refined: Pictures | None,
    completed: Sequence[Completion],
    captions: Sequence[str],
    talk: Sequence[_Answer],
    facts: dict[str, Any],
) -> Any:
    from tokvid.report.page import Card, Report
    from tokvid.report.pictures import animated, contact_sheet, still

    report = Report(MODEL, "What the model that comes with tokvid makes of captions and clips that it never saw.")
    for each in drawn:
        report.section(f"Drawn: {each.mode}", "The verdict is an oracle's, which sees the pictures alone.")
        report.cards(
            [
                Card(uri=animated(frames, clips.fps), caption=caption, verdict=clip.right, detail=f"seen: {clip.seen}")
                for frames, caption, clip in zip(each.frames, clips.captions, each.judged, strict=True)
            ]
        )
    if refined is not None:
        report.section(f"Hybrid: {drawn[0].mode}", "The same clip, decoded as it is and with the diffusion head.")
        firsts = (part[:_TO_REFINE] for part in (drawn[0].frames, clips.captions))
        for hybrid, plain, caption in zip(refined, *firsts, strict=True):
            sheet = contact_sheet([plain, hybrid], [f"{how}: {caption}" for how in ("plain", "hybrid")])
            report.cards([Card(uri=still(sheet), caption=caption)], width=700)
    report.section(
        "Completed", "The clip, what the model made of the part that it saw, and a guess that costs nothing."
    )
    for part in completed:
        shown = [frames[0] for frames in (clips.frames, part.frames, part.guesses)]
        labels = [f"{what}: {clips.captions[0]}" for what in ("clip", "model", "guess")]
        gain = f"{part.psnr:.1f} dB in what was hidden, the guess {part.guess_psnr:.1f}"
        card = Card(uri=still(contact_sheet(shown, labels)), caption=f"{part.task}, {part.mode}", detail=gain)
        report.cards([card], width=700)
    rows = list(zip(clips.captions, captions, strict=True))
    report.section("Captions").table(["of the clip", "of the model"], rows)
    report.section("Talk", "About the clip, shown with the first question; 'tokvid chat' goes on.")
    report.table(["said", "answered"], [(answer.said, answer.text) for answer in talk])
    cards = [
        Card(uri=animated(answer.frames, clips.fps), caption=f"{answer.said} {answer.text}")
        for answer in talk
        if answer.frames is not None
    ]
    number = _clip_to_talk_about(clips)
    report.cards([Card(uri=animated(clips.frames[number], clips.fps), caption="the clip"), *cards])
    return report.facts(facts, "Versions, seeds and figures")
