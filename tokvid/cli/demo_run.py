"""The stages of the demo, and the figures they give. Drawing the report is next door, in ``demo_report``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokvid.atomic import remove_folder, write_text
from tokvid.checkpoint import checkpoints
from tokvid.cli.clips import load_splits
from tokvid.cli.judging import Generation, generate, judge_reconstructions, prompts_to_show
from tokvid.cli.progress import counted
from tokvid.cli.stages import METRICS_FILE, STAGES_FILE, Stages
from tokvid.config import to_mapping
from tokvid.data.clips import ClipArray, DataConfig, FolderDataConfig, SpriteDataConfig
from tokvid.errors import DataError
from tokvid.provenance import provenance
from tokvid.report.page import Figure

if TYPE_CHECKING:
    from tokvid_lm.training import TrainedLM
    from tokvid_lm.training_config import LMRecipe
    from tokvid_tokenizers.training import TrainedCodec
    from tokvid_tokenizers.training_config import CodecRecipe

# Without an oracle nothing is counted, so a page full of clips is enough.
UNJUDGED_CLIPS = 24
GOAL_SECONDS = 720
# Ids of a clip with its caption that the demo trains on: some minutes on a processor, not hours.
MOST_POSITIONS = 4096


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Everything a demo made, for the report."""

    output: Path
    held_out: ClipArray
    codec: TrainedCodec
    code_counts: list[int]
    lm: TrainedLM
    generation: Generation
    judged: bool
    """Whether the goals are meant for this demo: they are for the sprite world at full size."""
    figures: list[Figure]
    facts: dict[str, Any]


def run_demo(
    codec_recipe: CodecRecipe, lm_recipe: LMRecipe, *, output: Path, fast: bool, began: float | None = None
) -> int:
    """Run every stage; write ``report.html``, ``metrics.json``, ``sheet.png`` and mp4 files into ``output``.

    A demo that was interrupted goes on from its checkpoints, and its time is that of all its runs; one that was
    finished has none left: it would start anew. ``began``: what ``time.perf_counter()`` said when the command began.
    """
    from tokvid.cli.demo_report import write_report

    work = {"codec": to_mapping(codec_recipe), "lm": to_mapping(lm_recipe)}
    stages = Stages(total=6, file=output / STAGES_FILE, work=work, began=began)
    try:
        demo = make_demo(codec_recipe, lm_recipe, output, stages, fast=fast)
    except KeyboardInterrupt:
        # The training's own line names an option that this verb does not need.
        raise KeyboardInterrupt(
            "stopped; the same command goes on from the newest checkpoint, if there is one"
        ) from None
    with stages("draw the report"):
        files = write_report(demo, stages.seconds)
    elapsed = stages.elapsed
    seconds = {**stages.seconds, "total": elapsed}
    metrics = {**demo.facts, "seconds": seconds, "seconds_complete": stages.complete}
    write_text(output / METRICS_FILE, json.dumps(metrics, indent=2) + "\n")
    remove_checkpoints(output)
    stages.remove_file()
    total = time_figure(elapsed, complete=stages.complete, judged=demo.judged)
    print_figures([*demo.figures, total])
    if fast:
        print("--fast proves the path; these figures and clips say nothing about quality", file=sys.stderr)
    for path in (*files, output / METRICS_FILE):
        print(path)
    return 0


def make_demo(codec_recipe: CodecRecipe, lm_recipe: LMRecipe, output: Path, stages: Stages, *, fast: bool) -> Demo:
    """Everything up to the report."""
    from tokvid.metrics.codebook_usage import CodebookUsage
    from tokvid_lm.training import train_lm
    from tokvid_tokenizers.training import train_codec

    has_oracle = isinstance(codec_recipe.data, SpriteDataConfig)
    with stages("draw the clips" if has_oracle else "read the clips"):
        clips, held_out = load_splits(codec_recipe.data)
        check_captions(codec_recipe.data, clips)
        codec_recipe = fit_batch(codec_recipe, len(clips))
        if not has_oracle:  # captions of any length
            lm_recipe = fit_context(lm_recipe, codec_recipe, clips, held_out)
    with stages("train the codec"):
        codec = train_codec(codec_recipe, clips, held_out, resume=True)
    with stages("measure the codec"):
        usage = CodebookUsage(codec.codec.codebook_size, codec.codec.num_codebooks)
        usage.update(codec.reconstructions.codes)
        codec_facts: dict[str, Any] = codec.evaluation.figures()
        codec_facts |= judge_reconstructions(codec_recipe.data, held_out.captions, codec.reconstructions.pictures)
    with stages("train the language model"), counted("encoding") as progress:
        lm = train_lm(lm_recipe, clips, held_out, codec=codec.codec, resume=True, progress=progress)
    with stages("generate and judge" if has_oracle else "generate"):
        show = None if has_oracle else prompts_to_show(clips.captions, held_out.captions, UNJUDGED_CLIPS)
        generation = generate(lm, lm_recipe, show=show)
    facts = {
        "codec": codec_facts,
        "language_model": {**lm.losses.figures(), **generation.figures},
        "provenance": provenance(lm_recipe.seed),
    }
    return Demo(
        output=output,
        held_out=held_out,
        codec=codec,
        code_counts=[int(count) for count in usage.counts.sum(axis=0)],
        lm=lm,
        generation=generation,
        judged=has_oracle and not fast,
        figures=headline_figures(facts, judged=has_oracle and not fast),
        facts=facts,
    )


def check_captions(config: DataConfig, clips: ClipArray) -> None:
    """Raise :class:`DataError` when no clip has a caption: before minutes go into a codec, not after."""
    if not any(caption.strip() for caption in clips.captions):
        where = config.path if isinstance(config, FolderDataConfig) else "the data"
        raise DataError(
            f"{where}: none of its {len(clips)} clips has a caption, and the language model draws from captions:"
            " put name.txt beside name.mp4 (a codec alone needs none: tokvid train with a codec recipe)"
        )


def fit_batch(recipe: CodecRecipe, clips: int) -> CodecRecipe:
    """The recipe with batches that so many clips can fill; a smaller batch than the recipe's is told."""
    wanted = recipe.training.batch_size
    if clips >= wanted:
        return recipe
    told = f"{clips} clips cannot fill a batch of {wanted}: the codec is trained with batches of {clips}"
    print(told, file=sys.stderr)
    return replace(recipe, training=replace(recipe.training, batch_size=clips))


def fit_context(recipe: LMRecipe, codec_recipe: CodecRecipe, clips: ClipArray, held_out: ClipArray) -> LMRecipe:
    """The recipe with as many positions as the longest caption needs; more than the recipe's are told.

    Raises :class:`DataError` naming the clip where that would be too many to train on: before minutes go into a codec.
    """
    from tokvid_lm.context import longest_document
    from tokvid_lm.training_config import ScratchModelConfig
    from tokvid_tokenizers import VideoCodec

    model = recipe.model
    assert isinstance(model, ScratchModelConfig), "the demo starts from nothing"
    codec = VideoCodec(codec_recipe.codec)  # untrained: what it does with clips does not matter here
    grid = codec.grid_for(*clips.frames.shape[1:4])
    longest = longest_document(recipe, codec, clips.captions, held_out.captions, grid, clips.fps)
    name = (*clips.names, *held_out.names)[longest.number]
    if longest.ids > MOST_POSITIONS:
        raise DataError(
            f"the caption of {name} takes {longest.caption_ids} ids, and its clip {longest.ids - longest.caption_ids}:"
            f" the demo trains on at most {MOST_POSITIONS} ids a clip; shorten that caption"
        )
    if longest.ids <= model.max_positions:
        return recipe
    told = f"the caption of {name} is long: the language model gets {longest.ids} positions, not {model.max_positions}"
    print(told, file=sys.stderr)
    return replace(recipe, model=replace(model, max_positions=longest.ids))


def remove_checkpoints(output: Path) -> None:
    """Remove the checkpoints of both trainings: the finished models are saved beside them."""
    for stage in ("codec", "lm"):
        for folder in checkpoints(output / stage):
            remove_folder(folder)


def headline_figures(facts: dict[str, Any], *, judged: bool) -> list[Figure]:
    """The numbers that matter, with their goals where the run is meant to reach them."""
    codec, lm = facts["codec"], facts["language_model"]

    def figure(name: str, value: float, text: str, goal: float, goal_text: str) -> Figure:
        return Figure(
            name=name, value=text, goal=goal_text if judged else "", reached=value >= goal if judged else None
        )

    def share(name: str, counts: dict[str, Any], goal: float) -> Figure:
        low, high = counts["interval_95"]
        return figure(name, counts["share"], f"{counts['share']:.3f} [{low:.3f}, {high:.3f}]", goal, f"at least {goal}")

    used, below = codec["codebook_usage"], lm["share_below_unigram"]
    figures = [
        figure("codec PSNR", codec["psnr"], f"{codec['psnr']:.2f} dB", 25.0, "at least 25 dB"),
        figure("codebook usage", used, f"{used:.1%} over {codec['codes']} codes", 0.5, "at least 50 %"),
        figure("loss below unigram entropy", below, f"{below:.1%}", 0.6, "at least 60 %"),
    ]
    if "sprite" in codec:
        figures.append(share("sprite in reconstructions", codec["sprite"], 0.9))
        figures.append(share("sprite in generated clips", lm["sprite"], 0.6))
        figures.append(share("direction in generated clips", lm["direction"], 0.85))
    return figures


def time_figure(seconds: float, *, complete: bool, judged: bool) -> Figure:
    """What the whole demo took; ``complete`` is false where some of it is not known, because it was killed."""
    minutes = f"{seconds / 60:.1f} minutes"
    in_time = seconds <= GOAL_SECONDS
    return Figure(
        name="whole demo",
        value=minutes if complete else f"at least {minutes} (it was killed and went on)",
        goal=f"at most {GOAL_SECONDS // 60} minutes on 2 cores" if judged else "",
        # Where some of the time is not known, only too much of it is certain.
        reached=in_time if judged and (complete or not in_time) else None,
    )


def print_figures(figures: list[Figure]) -> None:
    """A table on stdout."""
    widths = [max(len(text) for text in column) for column in zip(*((f.name, f.value) for f in figures), strict=True)]
    for figure in figures:
        verdict = "" if figure.reached is None else "reached" if figure.reached else "MISSED"
        print(f"{figure.name:<{widths[0]}}  {figure.value:<{widths[1]}}  {figure.goal}  {verdict}".rstrip())
