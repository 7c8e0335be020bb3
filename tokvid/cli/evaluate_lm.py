"""``tokvid evaluate`` of a video language model: figures, the oracle's verdicts on sprites, and a page of pictures."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokvid.atomic import write_text
from tokvid.cli.clip_options import SPRITES, given_shape
from tokvid.cli.evaluate import load_clips, refuse_options
from tokvid.cli.progress import counted
from tokvid.errors import DataError, ModelError

if TYPE_CHECKING:
    from tokvid.cli.judging import JudgedClip
    from tokvid.data.clips import ClipArray
    from tokvid.report.page import Report
    from tokvid_lm import VideoLM
    from tokvid_lm.full_evaluation import LMEvaluation
    from tokvid_lm.video_settings import VideoSettings

_SHOWN = 12
_COMPLETED = _BATCH_SIZE = 64
_MOST_TEXT = 32_768  # characters: some eight thousand ids, which is minutes of two cores and tells a tenth


def run_lm(arguments: argparse.Namespace, output: Path) -> int:
    """Measure, write, and print the figures."""
    refuse_options(arguments, ("lpips", "x264"), "measures a codec, and this folder holds a language model")
    batch_size = _BATCH_SIZE if arguments.batch_size is None else arguments.batch_size
    completed = _COMPLETED if arguments.completed is None else arguments.completed
    seed = arguments.seed or 0
    if batch_size < 1 or completed < 1:
        raise DataError(f"--batch-size and --completed must be at least 1, got {batch_size} and {completed}")
    if arguments.candidates is not None and arguments.candidates < 1:
        raise DataError(f"--candidates must be at least 1, got {arguments.candidates}")
    if arguments.base is not None and arguments.text is None:
        raise DataError("--base is for the perplexity of a text: say --text FILE too")
    from transformers.utils import logging as transformers_logging

    from tokvid.provenance import provenance
    from tokvid.runtime import default_device, loading_dtype, prepare
    from tokvid_lm import VideoLM
    from tokvid_lm.full_evaluation import evaluate_lm
    from tokvid_lm.passages import read_text

    transformers_logging.disable_progress_bar()  # one for every file of weights
    prepare(seed)
    text = None if arguments.text is None else read_text(arguments.text)
    lm = VideoLM.from_pretrained(arguments.model, dtype=loading_dtype()).to(default_device())
    wanted = _shape(lm.settings, arguments)
    clips = load_clips(arguments.data, wanted, arguments.clips, split=None if arguments.all else "held_out")
    # First: what is wrong with a text or its model is said before clips are drawn.
    perplexities = {} if text is None else {"text_perplexity": _perplexities(lm, text, arguments.base)}
    with counted("measure") as progress:
        evaluation = evaluate_lm(
            lm,
            clips,
            modes=tuple(dict.fromkeys(arguments.mode)),
            candidates=arguments.candidates,
            completed=completed,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
        )
    evaluation.figures.update(perplexities)
    verdicts = _judge(clips, evaluation) if arguments.data == SPRITES else {}
    facts = {
        "model": Path(arguments.model).name,
        "codec_id": lm.codec.codec_id,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "data": Path(arguments.data).name,
        "clips": f"{len(clips)} of {clips.frames.shape[1]} frames of {clips.frames.shape[2]}x{clips.frames.shape[3]}",
        "skipped": [name for name, _ in clips.skipped],
        "figures": evaluation.figures,
        "left_out": evaluation.left_out,
        **provenance(seed),
    }
    write_text(output / "evaluation.json", json.dumps(facts, indent=2) + "\n")
    write_text(output / "clips.jsonl", "".join(json.dumps(row) + "\n" for row in _rows(clips, evaluation, verdicts)))
    _page(clips, evaluation, verdicts, facts).save(output / "report.html")
    if arguments.json:
        print(json.dumps(evaluation.figures, indent=2))
    else:
        figures = _flat(evaluation.figures)
        width = max(len(name) for name, _ in figures) + 2
        for name, value in figures:
            print(f"{name:<{width}}{value:.5g}")
        print(output / "report.html")
    for name, reason in evaluation.left_out.items():
        print(f"no {name}: {reason}", file=sys.stderr)
    return 0


def _shape(settings: VideoSettings, arguments: argparse.Namespace) -> dict[str, Any]:
    """The clips that the model was trained on, where the command line does not say otherwise."""
    learned = {"num_frames": settings.num_frames, "fps": settings.fps}
    if settings.height is not None and settings.width is not None:
        learned["size"] = (settings.height, settings.width)  # type: ignore[assignment]
    wanted = {name: value for name, value in learned.items() if value is not None} | given_shape(arguments)
    missing = sorted({"size", "num_frames", "fps"} - set(wanted))
    if missing:
        raise ModelError(
            "the model was trained on clips of more than one shape: say --size, --frames and --fps, one of each"
        )
    return wanted


def _perplexities(lm: VideoLM, text: str, base: str | None) -> dict[str, float]:
    """Of the beginning of a text, ``now`` and, if ``base`` is said, ``before`` the model was extended."""
    from tokvid.runtime import default_device, loading_dtype
    from tokvid_lm.evaluation import text_perplexity
    from tokvid_lm.loading import load_causal_lm

    processor = lm.processor
    ids, start = processor.encode_text(text[:_MOST_TEXT]), processor.start_ids()
    models = {"now": lm.model}
    if base is not None:
        models["before"] = load_causal_lm(base, dtype=loading_dtype())
        models["before"].to(default_device())  # type: ignore[arg-type]
    return {
        when: text_perplexity(model, ids, text_size=lm.vocabulary.text_size, start=start)
        for when, model in models.items()
    }


def _judge(clips: ClipArray, evaluation: LMEvaluation) -> dict[str, list[JudgedClip]]:
    """The oracle's verdicts by mode, whose counts it adds to the figures, and those on captions."""
    from tokvid.cli.judging import judge, oracle_of
    from tokvid.data.sprites.verdicts import judge_captions

    oracle = oracle_of(clips)
    found: dict[str, list[JudgedClip]] = {}
    for mode, drawn in evaluation.drawn.items():
        counts, found[mode] = judge(oracle, clips.captions, drawn.frames)
        evaluation.figures["drawn"][mode] |= counts
    if evaluation.captions:
        evaluation.figures["captions"] = judge_captions(clips.captions, evaluation.captions).figures()
    return found


def _rows(clips: ClipArray, evaluation: LMEvaluation, verdicts: dict[str, list[JudgedClip]]) -> list[dict[str, Any]]:
    """A row a clip: its caption, what the model wrote of it, and what was seen in what it drew."""
    rows = []
    for number, name in enumerate(clips.names):
        row: dict[str, Any] = {"name": name, "caption": clips.captions[number]}
        if evaluation.captions:
            row["written"] = evaluation.captions[number]
        row |= {mode: dataclasses.asdict(judged[number]) for mode, judged in verdicts.items()}
        rows.append(row)
    return rows


def _flat(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Numbers by dotted names; of counted shares the share alone."""
    found: list[tuple[str, float]] = []
    for name, value in figures.items():
        if isinstance(value, dict):
            found += [(prefix + name, value["share"])] if "share" in value else _flat(value, f"{prefix}{name}.")
        elif value is not None:
            found.append((prefix + name, value))
    return found


def _page(
    clips: ClipArray, evaluation: LMEvaluation, verdicts: dict[str, list[JudgedClip]], facts: dict[str, Any]
) -> Report:
    from tokvid.report.page import Card, Figure, Report
    from tokvid.report.pictures import animated, contact_sheet, still

    report = Report("Video language model", f"{facts['model']} on {facts['data']}: {facts['clips']}")
    report.figures([Figure(name=name, value=f"{value:.4g}") for name, value in _flat(evaluation.figures)])
    for mode, drawn in evaluation.drawn.items():
        report.section(f"Drawn: {mode}", "One clip from each caption.")
        judged = verdicts.get(mode)
        report.cards(
            [
                Card(
                    uri=animated(drawn.frames[n], clips.fps),
                    caption=drawn.captions[n],
                    verdict=judged[n].right if judged else None,
                    detail=judged[n].seen if judged else "",
                )
                for n in range(min(_SHOWN, len(drawn.captions)))
            ]
        )
    if evaluation.completions:
        report.section("Completed", "The clip, what the model made of the part that it saw, and the guess.")
        for each in evaluation.completions:
            count = min(3, len(each.frames))
            strips = [part[n] for n in range(count) for part in (clips.frames, each.frames, each.guesses)]
            labels = [f"{what}: {clips.captions[n]}" for n in range(count) for what in ("clip", "model", "guess")]
            found = [f"{value:.2f} dB" if math.isfinite(value) else "exact" for value in (each.psnr, each.guess_psnr)]
            gain = f"in what was hidden {found[0]}, the guess {found[1]}"
            report.cards(
                [Card(uri=still(contact_sheet(strips, labels)), caption=f"{each.task}, {each.mode}", detail=gain)],
                width=700,
            )
    if evaluation.captions:
        rows = [[clips.captions[n], evaluation.captions[n]] for n in range(min(_SHOWN, len(clips)))]
        report.section("Captions").table(["of the clip", "of the model"], rows)
    return report.facts({name: value for name, value in facts.items() if name != "figures"}, "Versions and settings")
