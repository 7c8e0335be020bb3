"""Measure a codec or a video language model on clips, with figures and pictures.

tokvid evaluate runs/demo/codec/codec sprites --size 32x32 -o runs/evaluation
tokvid evaluate preset:base my_videos --size 128x128 --clips 64 -o runs/evaluation
tokvid evaluate runs/demo/lm/lm sprites -o runs/evaluation-lm
tokvid evaluate runs/sprites-chat/lm/lm dialogues --clips 500 -o runs/evaluation-chat

DATA is a folder of videos, or 'sprites' for held-out clips of the built-in world. A language model is measured on clips
of the size that it was trained on, and of a folder on the videos that a training on it holds out. One that talks is
also measured on 'dialogues' over the built-in world, of which every answer is judged. The folder written has
evaluation.json, report.html and clips.jsonl with a line a clip; of a codec videos.jsonl with a line a video (means of
its clips), of dialogues answers.jsonl in place of clips.jsonl. The same command gives the same numbers, but for the
seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokvid.atomic import write_text
from tokvid.cli.clip_options import SPRITES, add_shape_options, shape
from tokvid.cli.progress import counted
from tokvid.errors import DataError
from tokvid.hub import CODEC_PREFIXES, local_folder

if TYPE_CHECKING:
    from tokvid.data.clips import ClipArray, Split
    from tokvid_tokenizers.full_evaluation import FullEvaluation

_WORST = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``MODEL DATA -o FOLDER`` and which clips."""
    parser.add_argument(
        "model", metavar="MODEL", help="the folder of a codec or a language model, org/name on the Hub, or preset:NAME"
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="a folder of videos, 'sprites', or over them 'dialogues' or 'dialogues-far' (worded unlike any training)",
    )
    parser.add_argument(
        "-o",
        "--output",
        default="runs/evaluation",
        metavar="FOLDER",
        help="where to write what was found (default runs/evaluation)",
    )
    parser.add_argument("-f", "--force", action="store_true", help="overwrite an earlier evaluation there")
    add_shape_options(parser)
    parser.add_argument(
        "--clips", type=int, default=256, help="at most so many clips (or dialogues), spread over DATA (default 256)"
    )
    parser.add_argument(
        "--lpips", nargs=2, metavar=("VGG", "LINEAR"), help="weights of VGG-16 and of LPIPS's linear layers, for LPIPS"
    )
    parser.add_argument("--x264", action="store_true", help="also draw PSNR over bits against x264 (even sides only)")
    lm = parser.add_argument_group("of a language model")
    lm.add_argument("--mode", action="append", default=[], help="draw in this mode alone (may be given again)")
    lm.add_argument("--candidates", type=int, metavar="N", help="draw the best of N (default: as the model draws)")
    lm.add_argument("--completed", type=int, metavar="N", help="complete so many clips (default 64)")
    lm.add_argument("--batch-size", type=int, metavar="N", help="clips drawn at once (default 64)")
    lm.add_argument("--text", metavar="FILE", help="also the perplexity of the beginning of this UTF-8 text")
    lm.add_argument("--base", metavar="MODEL", help="and what it was to MODEL, which the language model was made of")
    lm.add_argument("--seed", type=int, help="of what is drawn (default 0)")
    lm.add_argument(
        "--all", action="store_true", help="all videos of DATA: it is a folder that no training has seen a part of"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write, and print the figures."""
    output = Path(arguments.output)
    if (output / "evaluation.json").exists() and not arguments.force:
        raise DataError(f"{output} holds an evaluation: give another folder, or -f to overwrite it")
    if not arguments.model.startswith(CODEC_PREFIXES) and (local_folder(arguments.model) / "video_lm.json").is_file():
        from tokvid.cli.evaluate_dialogues import DIALOGUES, run_dialogues
        from tokvid.cli.evaluate_lm import run_lm

        if arguments.data in DIALOGUES and not Path(arguments.data).is_dir():
            return run_dialogues(arguments, output)
        return run_lm(arguments, output)
    return _run_codec(arguments, output)


def refuse_options(arguments: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raise :class:`DataError` for the first of ``names`` that was given: 0 is given, unlike a flag that was not."""
    for name in names:
        given = getattr(arguments, name)
        if not (given is None or given is False or given == []):
            raise DataError(f"--{name.replace('_', '-')} {why}: leave it out")


def _run_codec(arguments: argparse.Namespace, output: Path) -> int:
    of_lm = ("mode", "text", "base", "all", "candidates", "completed", "batch_size", "seed")
    refuse_options(arguments, of_lm, f"is for a language model, and {arguments.model} is a codec")
    wanted = shape(arguments)
    num_frames, (height, width), fps = wanted["num_frames"], wanted["size"], wanted["fps"]
    from tokvid.metrics.perceptual import LPIPS, PictureDistance
    from tokvid.metrics.x264 import psnr_at, x264_curve
    from tokvid.provenance import provenance
    from tokvid.runtime import default_device, prepare
    from tokvid_tokenizers import load_codec
    from tokvid_tokenizers.full_evaluation import by_video, evaluate_codec, table

    prepare(0)
    codec = load_codec(arguments.model, device=default_device())
    codec.grid_for(num_frames, height, width)  # before clips are decoded that it could not take
    distances: dict[str, PictureDistance] | None = (
        {"lpips": LPIPS(*arguments.lpips).distance} if arguments.lpips else None
    )
    clips = load_clips(arguments.data, wanted, arguments.clips)
    with counted("measure") as progress:
        evaluation = evaluate_codec(codec, clips.frames, distances=distances, progress=progress)
    curve = x264_curve(clips.frames, fps) if arguments.x264 else []
    if curve and codec.num_codebooks:
        equal = psnr_at(curve, evaluation.figures["bits_per_pixel"])
        if equal is None:
            rates = [point.bits_per_pixel for point in curve]
            evaluation.left_out["x264_psnr_at_equal_bits"] = (
                f"the codec has {evaluation.figures['bits_per_pixel']:.4f} bits a pixel, x264's qualities lie between"
                f" {min(rates):.4f} and {max(rates):.4f}"
            )
        else:
            evaluation.figures["x264_psnr_at_equal_bits"] = equal
    facts = {
        "codec": Path(arguments.model).name,
        "codec_id": codec.codec_id,
        "data": Path(arguments.data).name,
        "clips": f"{len(clips)} of {num_frames} frames of {height}x{width} at {fps:g} fps",
        "skipped": [name for name, _ in clips.skipped],
        "figures": evaluation.figures,
        "left_out": evaluation.left_out,
        "x264": [dataclasses.asdict(point) for point in curve],
        **provenance(0),
    }
    write_text(output / "evaluation.json", json.dumps(facts, indent=2) + "\n")
    rows = table(clips.names, evaluation)
    videos = by_video(rows)
    for name, lines in (("clips", rows), ("videos", videos)):
        write_text(output / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in lines))
    _page(clips, evaluation, facts, rows, videos).save(output / "report.html")
    if arguments.json:
        print(json.dumps(facts["figures"], indent=2))
    else:
        for name, value in evaluation.figures.items():
            print(f"{name:<26}{value:.5g}")
        print(output / "report.html")
    for name, reason in evaluation.left_out.items():
        print(f"no {name}: {reason}", file=sys.stderr)
    return 0


def load_clips(data: str, wanted: dict[str, Any], count: int, *, split: Split | None = None) -> ClipArray:
    """At most ``count`` clips of the ``wanted`` shape of ``data`` (of a ``split`` of a folder, or of all of it), with
    what was skipped said on stderr."""
    from tokvid.data.clip_source import spread
    from tokvid.data.clips import FolderClips, FolderDataConfig, SpriteDataConfig, materialise, open_clips

    if count < 1:
        raise DataError(f"--clips must be at least 1, got {count}")
    if data == SPRITES:
        sprites = SpriteDataConfig(**wanted, train_clips=1, held_out_clips=count)
        with counted("draw clips") as progress:
            return materialise(open_clips(sprites, "held_out"), progress=progress)
    source = FolderClips(FolderDataConfig(path=data, **wanted), split)
    if not len(source):
        raise DataError(
            f"{data}: no video is long enough for a clip of {wanted['num_frames']} frames at {wanted['fps']:g} fps;"
            " ask for fewer"
        )
    source = source.select(spread(len(source), count))
    with counted("read clips") as progress:
        return materialise(source, progress=progress)  # the source names what is skipped


def _page(
    clips: ClipArray,
    evaluation: FullEvaluation,
    facts: dict[str, Any],
    rows: list[dict[str, Any]],
    videos: list[dict[str, Any]],
) -> Any:
    from tokvid.report.page import Card, Figure, Report
    from tokvid.report.pictures import animated, side_by_side
    from tokvid.report.plots import line_plot
    from tokvid_tokenizers.full_evaluation import worst

    report = Report("Codec evaluation", f"{facts['codec']} on {facts['data']}: {facts['clips']}")
    report.figures([Figure(name=name, value=f"{value:.4g}") for name, value in evaluation.figures.items()])
    cards = [
        Card(
            uri=animated(side_by_side(clips.frames[n], evaluation.reconstructions.pictures[n]), clips.fps),
            caption=clips.names[n],
            detail=f"{evaluation.each['psnr'][n]:.2f} dB",
        )
        for n in worst(evaluation.each["psnr"], _WORST)
    ]
    if facts["x264"]:
        curves = {"x264": [(point["bits_per_pixel"], point["psnr"]) for point in facts["x264"]]}
        if "bits_per_pixel" in evaluation.figures:
            curves["this codec"] = [(evaluation.figures["bits_per_pixel"], evaluation.figures["psnr"])]
        report.section("Rate and distortion", "Every clip coded by x264 at a range of qualities, without a container.")
        report.plots(line_plot(curves, "PSNR over rate", xlabel="bits a pixel", ylabel="PSNR (dB)"))
    report.section("Worst clips", "Lowest PSNR first; the original on the left, its reconstruction on the right.")
    report.cards(cards)
    if len(videos) < len(rows):
        report.section("Every video").table(list(videos[0]), [list(row.values()) for row in videos])
    report.section("Every clip").table(list(rows[0]), [list(row.values()) for row in rows])
    return report.facts({k: v for k, v in facts.items() if k != "figures"}, "Versions and settings")
