"""What a demo leaves to look at: one page, one picture, and mp4 files with their provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tokvid.atomic import atomic_folder, atomic_path
from tokvid.data.clip_source import spread
from tokvid.report.page import Card, Report
from tokvid.report.pictures import animated, contact_sheet, side_by_side
from tokvid.report.plots import line_plot, usage_plot
from tokvid.training_log import read_log
from tokvid.video import Video, write_video

if TYPE_CHECKING:
    from tokvid.cli.demo_run import Demo

RECONSTRUCTIONS = 12
GENERATED = 24
SHEET_CLIPS = 8
MP4_CLIPS = 16
SHEET_FRAMES = 9
Pictures = npt.NDArray[np.uint8]


def write_report(demo: Demo, seconds: dict[str, float]) -> list[Path]:
    """Write ``report.html``, ``sheet.png`` and ``generated/*.mp4``; returns the first two and the folder."""
    return [_page(demo, seconds).save(demo.output / "report.html"), _sheet(demo), _videos(demo)]


def _page(demo: Demo, seconds: dict[str, float]) -> Report:
    fps = demo.held_out.fps
    report = Report("tokvid demo", "A video codec and a language model that speaks its codes, trained from nothing.")
    report.figures(demo.figures)
    report.section(
        "Generated from captions",
        "Captions of held-out clips, drawn by the language model. The verdict is the oracle's, from the pictures alone."
        if demo.generation.judged is not None
        else "Drawn by the language model: captions of training clips, which it may remember, and new captions.",
    )
    report.cards(_generated_cards(demo, fps))
    report.section("Reconstructions", "Held-out clips on the left, what is left of them after the codec on the right.")
    report.cards(_reconstruction_cards(demo, fps))
    report.section("Training")
    codec_log, lm_log = (read_log(demo.output / name / "log.jsonl") for name in ("codec", "lm"))
    report.plots(codec_curve(codec_log), language_model_curve(lm_log), usage_plot(demo.code_counts))
    report.section("Time")
    report.table(("stage", "seconds"), [(name, round(value, 1)) for name, value in seconds.items()])
    report.facts(demo.facts, "Versions, seeds and figures")
    return report


def _reconstruction_cards(demo: Demo, fps: float) -> list[Card]:
    """Held-out clips, spread evenly: in a folder of films neighbours are alike."""
    held_out, decoded = demo.held_out, demo.codec.reconstructions.pictures
    return [
        Card(
            uri=animated(side_by_side(held_out.frames[number], decoded[number]), fps), caption=held_out.captions[number]
        )
        for number in spread(len(held_out), RECONSTRUCTIONS)
    ]


def _generated_cards(demo: Demo, fps: float) -> list[Card]:
    cards = []
    for number, clip in enumerate(demo.generation.clips[:GENERATED]):
        judged = demo.generation.judged[number] if demo.generation.judged is not None else None
        cards.append(
            Card(
                uri=animated(clip, fps),
                caption=demo.generation.prompts[number],
                verdict=None if judged is None else judged.right,
                detail=demo.generation.notes[number] if judged is None else f"seen: {judged.seen}",
            )
        )
    return cards


def codec_curve(log: list[dict[str, Any]]) -> str:
    """PSNR over the steps of a codec's ``log.jsonl``, of training and held-out clips."""
    return line_plot(
        {"training": _series(log, "psnr"), "held out": _series(log, "held_out_psnr")}, "codec", ylabel="PSNR (dB)"
    )


def language_model_curve(log: list[dict[str, Any]]) -> str:
    """Bits a code over the steps of a language model's ``log.jsonl``, of training and held-out clips."""
    return line_plot(
        {"training": _series(log, "bits (next_token)"), "held out": _series(log, "held-out bits (next_token)")},
        "language model",
        ylabel="bits a code",
    )


def _series(lines: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(float(line["step"]), float(line[name])) for line in lines if name in line]


def _sheet(demo: Demo) -> Path:
    words = zip(demo.generation.prompts, demo.generation.notes, strict=True)
    labels = [f"{prompt} ({note})" if note else prompt for prompt, note in words]
    return write_sheet(demo.output / "sheet.png", demo.generation.clips, labels)


def write_sheet(path: Path, clips: Pictures, labels: Sequence[str]) -> Path:
    """One PNG: the first clips of uint8 ``[N,T,H,W,3]``, a row each, under their labels."""
    clips = clips[:SHEET_CLIPS]
    shown = np.linspace(0, clips.shape[1] - 1, min(SHEET_FRAMES, clips.shape[1])).round().astype(int)
    scale = max(1, 96 // clips.shape[2])
    with atomic_path(path) as beside:
        picture = contact_sheet([clip[shown] for clip in clips], labels[:SHEET_CLIPS], scale=scale)
        Image.fromarray(picture).save(beside, "PNG")
    return path


def _videos(demo: Demo) -> Path:
    return write_videos(
        demo.output / "generated",
        demo.generation.clips,
        demo.generation.prompts,
        fps=demo.held_out.fps,
        made_by=demo.facts["provenance"],
    )


def write_videos(
    folder: Path, clips: Pictures, captions: Sequence[str], *, fps: float, made_by: Mapping[str, Any]
) -> Path:
    """The first clips of uint8 ``[N,T,H,W,3]`` as mp4 files that say what they are."""
    with atomic_folder(folder) as beside:  # those of an earlier demo, which may be more, are gone
        for number, clip in enumerate(clips[:MP4_CLIPS]):
            metadata = {"tokvid": json.dumps({"caption": captions[number], **made_by})}
            write_video(beside / f"{number:02d}.mp4", Video(frames=clip, fps=fps), metadata=metadata)
    return folder
