"""The stages of the demo, and the figures they give. Drawing the report is next door, in ``demo_report``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tokvid.atomic import remove_folder, write_text
from tokvid.cli.clips import load_splits
from tokvid.cli.progress import counted
from tokvid.cli.stages import Stages
from tokvid.data.clips import ClipArray, DataConfig, FolderDataConfig, SpriteDataConfig
from tokvid.errors import DataError
from tokvid.provenance import provenance
from tokvid.report.page import Figure

if TYPE_CHECKING:
    from tokvid.data.sprites.oracle import Oracle, Sight
    from tokvid_lm.training import TrainedLM
    from tokvid_lm.training_config import LMRecipe
    from tokvid_tokenizers.training import TrainedCodec
    from tokvid_tokenizers.training_config import CodecRecipe

Pictures = npt.NDArray[np.uint8]
# Without an oracle nothing is counted, so a page full of clips is enough.
UNJUDGED_CLIPS = 24


@dataclass(frozen=True, kw_only=True)
class JudgedClip:
    """What the oracle says of one clip, in words, and whether all that its caption names is right."""

    right: bool
    seen: str


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Clips uint8 ``[N,T,H,W,3]`` drawn from ``prompts``; with an oracle, its verdicts and the counts."""

    prompts: list[str]
    clips: Pictures
    judged: list[JudgedClip] | None
    figures: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Everything a demo made, for the report."""

    output: Path
    held_out: ClipArray
    codec: TrainedCodec
    code_counts: list[int]
    lm: TrainedLM
    generation: Generation
    figures: list[Figure]
    facts: dict[str, Any]


def run_demo(codec_recipe: CodecRecipe, lm_recipe: LMRecipe, *, output: Path, fast: bool) -> int:
    """Run every stage; write ``report.html``, ``metrics.json``, ``sheet.png`` and mp4 files into ``output``.

    A demo that was interrupted goes on from its checkpoints; one that was finished has none left and starts anew.
    """
    from tokvid.cli.demo_report import write_report

    stages = Stages(total=6)
    try:
        demo = make_demo(codec_recipe, lm_recipe, output, stages, fast=fast)
    except KeyboardInterrupt:
        # The training's own line names an option that this verb does not need.
        raise KeyboardInterrupt(
            "stopped; the same command goes on from the newest checkpoint, if there is one"
        ) from None
    with stages("draw the report"):
        files = write_report(demo, stages.seconds)
    metrics = {**demo.facts, "seconds": {**stages.seconds, "total": stages.elapsed}}
    write_text(output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    remove_checkpoints(output)
    total = Figure(
        name="whole demo",
        value=f"{stages.elapsed / 60:.1f} minutes",
        goal="" if fast else "at most 12 minutes on 2 cores",
        reached=None if fast else stages.elapsed <= 720,
    )
    print_figures([*demo.figures, total])
    for path in (*files, output / "metrics.json"):
        print(path)
    return 0


def make_demo(codec_recipe: CodecRecipe, lm_recipe: LMRecipe, output: Path, stages: Stages, *, fast: bool) -> Demo:
    """Everything up to the report."""
    from tokvid.metrics.codebook_usage import CodebookUsage
    from tokvid_lm.training import train_lm
    from tokvid_tokenizers.training import train_codec

    oracle = make_oracle(codec_recipe.data)
    with stages("draw the clips" if oracle else "read the clips"):
        clips, held_out = load_splits(codec_recipe.data)
        check_captions(codec_recipe.data, clips)
        codec_recipe = fit_batch(codec_recipe, len(clips))
    with stages("train the codec"):
        codec = train_codec(codec_recipe, clips, held_out, resume=True)
    with stages("measure the codec"):
        pictures = codec.reconstructions.pictures
        usage = CodebookUsage(codec.codec.codebook_size, codec.codec.num_codebooks)
        usage.update(codec.reconstructions.codes)
        codec_facts: dict[str, Any] = codec.evaluation.figures()
        if oracle is not None:
            judged = min(len(pictures), lm_recipe.evaluation.clips)
            codec_facts["sprite"] = count_sprites(oracle, held_out.captions[:judged], pictures[:judged])
    with stages("train the language model"), counted("encoding") as progress:
        lm = train_lm(lm_recipe, clips, held_out, codec=codec.codec, resume=True, progress=progress)
    with stages("generate" if oracle is None else "generate and judge"):
        generation = generate(lm, lm_recipe, held_out, oracle)
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
        figures=headline_figures(facts, judged=oracle is not None and not fast),
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


def remove_checkpoints(output: Path) -> None:
    """Remove the checkpoints of both trainings: the finished models are saved beside them."""
    for stage in ("codec", "lm"):
        for folder in (output / stage).glob("step-*"):
            if folder.is_dir() and folder.suffix != ".tmp":
                remove_folder(folder)


def make_oracle(config: Any) -> Oracle | None:
    """The oracle of the sprite world; None for other data."""
    if not isinstance(config, SpriteDataConfig):
        return None
    from tokvid.data.sprites.oracle import Oracle
    from tokvid.data.sprites.world import SpriteWorldConfig

    return Oracle(SpriteWorldConfig(size=config.size, num_frames=config.num_frames, fps=config.fps))


def count_sprites(oracle: Oracle, captions: list[str], clips: Pictures) -> dict[str, Any]:
    """In how many clips the oracle sees every sprite that the caption names, with a 95 % interval."""
    from tokvid.data.sprites.verdicts import judge_clips

    return judge_clips(oracle, captions, clips).proportions["sprite"].figures()


def generate(lm: TrainedLM, recipe: LMRecipe, held_out: ClipArray, oracle: Oracle | None) -> Generation:
    """Draw clips from held-out captions and, where there is an oracle, let it judge them."""
    from tokvid.data.sprites.verdicts import judge_clips
    from tokvid_lm.evaluation import draw_clips

    config = recipe.evaluation
    prompts = held_out.captions[: config.clips if oracle else UNJUDGED_CLIPS]
    num_frames, height, width = held_out.frames.shape[1:4]
    with counted("drawing") as progress:
        drawn = draw_clips(
            lm.lm,
            prompts,
            config.sampling(recipe.seed),
            num_frames=num_frames,
            height=height,
            width=width,
            batch_size=config.batch_size,
            progress=progress,
        )
    figures: dict[str, Any] = {"clips": len(prompts), "clips_per_second": len(prompts) / drawn.seconds}
    judged: list[JudgedClip] | None = None
    if oracle is not None:
        verdicts = judge_clips(oracle, prompts, drawn.frames)
        figures |= verdicts.figures()
        judged = [
            JudgedClip(right=verdict.all, seen=describe(sight))
            for verdict, sight in zip(verdicts.verdicts, verdicts.sights, strict=True)
        ]
    return Generation(prompts=prompts, clips=drawn.frames, judged=judged, figures=figures)


def describe(sight: Sight) -> str:
    """What the oracle saw, in a line."""
    seen = [f"{found.sprite or 'something'} {found.motion or 'moving'}" for found in sight.sprites]
    return f"{' and '.join(seen) or 'no sprite'}, {sight.background or 'no background'}"


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


def print_figures(figures: list[Figure]) -> None:
    """A table on stdout."""
    widths = [max(len(text) for text in column) for column in zip(*((f.name, f.value) for f in figures), strict=True)]
    for figure in figures:
        verdict = "" if figure.reached is None else "reached" if figure.reached else "MISSED"
        print(f"{figure.name:<{widths[0]}}  {figure.value:<{widths[1]}}  {figure.goal}  {verdict}".rstrip())
