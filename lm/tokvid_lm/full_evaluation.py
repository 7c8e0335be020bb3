"""All that is said of a video language model on clips that it never saw: losses, what it draws, completes and writes.

The same model and clips give the same figures again, but for the seconds. Nothing here knows what is on the pictures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tokvid.data.clips import ClipArray
from tokvid.errors import ModelError
from tokvid.frames import to_model
from tokvid.metrics.frechet import MIN_FRAMES, efflite_frechet, is_still, motion_features
from tokvid_lm.candidates import check_judges
from tokvid_lm.code_clips import CodedClips, code_clips
from tokvid_lm.completion import COMPLETIONS, Completion, complete_clips
from tokvid_lm.evaluation import DrawnClips, draw_clips, unigram_entropy, validation_losses
from tokvid_lm.mixture import MixtureConfig
from tokvid_lm.segments import TextSegment, VideoSegment
from tokvid_lm.video_lm import VideoLM
from tokvid_lm.vocabulary import MODES

Pictures = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]
# Captions that are drawn from twice, for the diversity of what is drawn.
_TWICE = 16
_ALONE = 3
_MOST_CAPTION_IDS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class LMEvaluation:
    """``figures`` are plain numbers by name, nested; the pictures that they were measured on stand beside them.

    ``drawn`` clips by mode, ``completions`` by task and mode, and the ``captions`` that the model wrote, if it writes
    any. What could not be measured is not there; ``left_out`` says why.
    """

    figures: dict[str, Any]
    drawn: dict[str, DrawnClips]
    completions: list[Completion]
    captions: list[str]
    left_out: dict[str, str]


def evaluate_lm(
    lm: VideoLM,
    clips: ClipArray,
    *,
    modes: tuple[str, ...] = (),
    candidates: int | None = None,
    completed: int = 64,
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> LMEvaluation:
    """Measure ``lm`` on clips of the size that it was trained on.

    Clips are drawn from their captions in each of ``modes`` (all that it knows), the best of so many ``candidates``
    (as its settings say); the first ``completed`` clips are completed. Bits are of a code, given its caption;
    ``unigram`` is what guessing by how common each code is in these clips costs. Of a continuous model squared errors
    of the velocity stand in their place, as ``flow``. ``diversity`` is how far two clips drawn from one caption are
    apart, in levels of 255 a pixel; ``seconds_alone`` of one clip drawn by itself. ``progress(done, total)`` follows
    each stage. Raises :class:`ModelError` for clips without captions, or of another size.
    """
    _check(lm, clips)
    known = tuple(sampling.mode for sampling in lm.settings.sampling)
    modes = modes or known
    drawing = {mode: lm.sampling_for(mode).override(candidates=candidates) for mode in modes}  # says what it knows
    counts = {mode: sampling.candidates for mode, sampling in drawing.items()}
    if max(counts.values(), default=1) > 1:
        if lm.is_continuous:
            raise ModelError("candidates cannot be used by a continuous model, which reads no clips: leave them out")
        # A caption that is empty has one candidate where the settings ask for more, and none where it is asked for.
        asked = [] if candidates is None else [[TextSegment(caption)] for caption in clips.captions]
        check_judges(lm, asked)
    report = progress or (lambda done, total: None)
    left_out: dict[str, str] = {}
    coded = code_clips(lm.codec, clips, progress=report)
    word = "flow" if lm.is_continuous else "bits"
    figures: dict[str, Any] = {"clips": len(clips), word: _losses(lm, coded, modes, batch_size, report)}
    drawn: dict[str, DrawnClips] = {}
    figures["drawn"] = {}
    for mode in modes:
        drawn[mode] = draw_clips(
            lm,
            clips.captions,
            mode=mode,
            candidates=candidates,
            seed=seed,
            batch_size=batch_size,
            **_size(clips),
            progress=report,
        )
        figures["drawn"][mode] = {"candidates": counts[mode]} | _drawn_figures(
            lm,
            clips,
            drawn[mode],
            left_out,
            mode=mode,
            candidates=candidates,
            seed=seed,
            batch_size=batch_size,
        )
    figures["diversity_of_clips"] = _apart(clips.frames[:_TWICE], np.roll(clips.frames[:_TWICE], 1, axis=0))
    completions = _complete(lm, clips, modes, min(completed, len(clips)), seed, batch_size, report, left_out)
    figures["completed"] = {
        f"{each.task}, {each.mode}": {
            "psnr": _finite(each.psnr),
            "guess_psnr": _finite(each.guess_psnr),
            "gain": _finite(each.psnr - each.guess_psnr),
        }
        for each in completions
    }
    captions: list[str] = []
    if lm.settings.captions:
        captions = write_captions(lm, coded, batch_size=batch_size)
        same = sum(ours == theirs for ours, theirs in zip(captions, clips.captions, strict=True))
        figures["captions_word_for_word"] = same / len(clips)
    else:
        left_out["captions"] = "the model did not learn to caption clips"
    return LMEvaluation(figures=figures, drawn=drawn, completions=completions, captions=captions, left_out=left_out)


def write_captions(lm: VideoLM, coded: CodedClips, *, batch_size: int = 64) -> list[str]:
    """What the model says of each clip, greedily."""
    prompts = [
        [VideoSegment(codes=coded.codes_of(n)[None], num_frames=coded.num_frames, fps=coded.fps)]
        for n in range(len(coded))
    ]
    answers = lm.generate(prompts, output="text", top_k=1, max_new_tokens=_MOST_CAPTION_IDS, batch_size=batch_size)
    return [answer.text.strip() for answer in answers if isinstance(answer, TextSegment)]


def _size(clips: ClipArray) -> dict[str, Any]:
    """Of clips to draw."""
    _, num_frames, height, width, _ = clips.frames.shape
    return {"num_frames": num_frames, "height": height, "width": width, "fps": clips.fps}


def _finite(value: float) -> float | None:
    """None for what JSON cannot hold: decibels of a guess that is exact."""
    return value if math.isfinite(value) else None


def _check(lm: VideoLM, clips: ClipArray) -> None:
    if lm.vocabulary.num_actions:
        raise ModelError(
            "this model draws from actions, and the clips of an evaluation bring none: it cannot be measured"
        )
    lm.settings.check_clips(clips.fps, clips.frames.shape[1:4])
    if not any(clips.captions):
        raise ModelError("these clips have no captions, but a language model draws from captions: write some")


def _losses(
    lm: VideoLM, coded: CodedClips, modes: tuple[str, ...], batch_size: int, report: Progress
) -> dict[str, float]:
    """Bits of a code by each mode, of a caption's id, and of guessing a code; or squared errors of latents."""
    objectives = [*modes, *(("caption",) if lm.settings.captions else ())]
    unit = 1.0 if lm.is_continuous else 1.0 / math.log(2)
    losses = {} if lm.is_continuous else {"unigram": unigram_entropy(coded) * unit}
    for number, name in enumerate(objectives):
        mixture = (MixtureConfig(objective=name),)
        for part, nats in validation_losses(lm, coded, mixture, batch_size=batch_size).items():
            losses[part] = nats * unit
        report(number + 1, len(objectives))
    return losses


def _drawn_figures(
    lm: VideoLM,
    clips: ClipArray,
    drawn: DrawnClips,
    left_out: dict[str, str],
    *,
    mode: str,
    candidates: int | None,
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    figures: dict[str, Any] = {"seconds": drawn.seconds / len(clips)}
    start = time.perf_counter()
    for number in range(_ALONE):
        caption = clips.captions[number % len(clips)]
        alone = [TextSegment(caption)]
        lm.generate(alone, mode=mode, candidates=candidates, seed=seed, batch_size=batch_size, **_size(clips))
    figures["seconds_alone"] = (time.perf_counter() - start) / _ALONE
    again = draw_clips(
        lm,
        clips.captions[:_TWICE],
        mode=mode,
        candidates=candidates,
        seed=seed + 1,
        batch_size=batch_size,
        **_size(clips),
    )
    figures["diversity"] = _apart(drawn.frames[:_TWICE], again.frames)
    if clips.frames.shape[1] < MIN_FRAMES or len(clips) < 2:
        left_out["efflite_frechet"] = f"it needs two clips or more of {MIN_FRAMES} frames or more"
    else:
        real, ours = (motion_features(to_model(part)) for part in (clips.frames, drawn.frames))
        if is_still(real):
            left_out["efflite_frechet"] = "it is of motion, and nothing moves in these clips"
        else:
            figures["efflite_frechet"] = efflite_frechet(real, ours)
    return figures


def _apart(clips: Pictures, others: Pictures) -> float:
    """Mean absolute difference, in levels of 255."""
    return float(np.abs(clips.astype(np.float32) - others).mean())


def _complete(
    lm: VideoLM,
    clips: ClipArray,
    modes: tuple[str, ...],
    count: int,
    seed: int,
    batch_size: int,
    report: Progress,
    left_out: dict[str, str],
) -> list[Completion]:
    """Every task in every mode that sees what is given: by next-token and frame by frame only what comes before."""
    found: list[Completion] = []
    if lm.is_continuous:
        left_out["completions"] = "a continuous model draws from text alone"
        return found
    latent_frames = lm.codec.grid_for(*clips.frames.shape[1:4]).t
    for task in COMPLETIONS:
        if latent_frames < (3 if task == "interpolation" else 2) and task != "inpainting":
            left_out[task] = f"clips of {latent_frames} latent frames are too short for it"
            continue
        fit = [mode for mode in MODES if mode in modes and (mode == "maskgit" or task == "continuation")]
        if not fit:
            left_out[task] = "the model does not draw at once (maskgit), so it does not see what comes later"
        for mode in fit:
            found.append(
                complete_clips(
                    lm,
                    clips.frames[:count],
                    clips.captions[:count],
                    task=task,
                    mode=mode,
                    fps=clips.fps,
                    seed=seed,
                    batch_size=batch_size,
                    progress=report,
                )
            )
    return found
