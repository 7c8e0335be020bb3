"""Draw a video from a caption with a trained video language model.

tokvid generate "an apple moves left over grass" -o apple.mp4
tokvid generate "an apple moves left over grass" --model runs/demo/lm/lm -o apple.mp4
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokvid.cli.drawing_options import check_drawing
from tokvid.errors import DataError, ModelError
from tokvid.video import Video, check_destination, write_video

DEFAULT_MODEL = "tokvid-sprites-lm"
_FPS = 8.0  # of a model that was trained on clips of several rates


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``CAPTION [--model FOLDER] -o FILE`` and how to sample."""
    parser.add_argument("caption", metavar="CAPTION", help="what the video shows")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="FOLDER",
        help=f"a trained video language model, or org/name on the Hub (default {DEFAULT_MODEL}, which is shipped)",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the video to write (.mp4)")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite the file when it exists")
    trained = "default: as the model was trained"
    parser.add_argument("--frames", type=int, default=None, help=f"number of frames ({trained})")
    parser.add_argument("--size", default=None, metavar="HxW", help=f"height and width in pixels ({trained})")
    parser.add_argument("--fps", type=float, default=None, help=f"frames a second of the file ({trained}, or 8)")
    own = "default: as the model was evaluated"
    parser.add_argument("--guidance", type=float, default=None, help=f"classifier-free guidance; 1 is off ({own})")
    parser.add_argument("--temperature", type=float, default=None, help=f"above 0; lower is surer ({own})")
    parser.add_argument("--top-k", type=int, default=None, help=f"keep the likeliest ids; 0 keeps all ({own})")
    parser.add_argument("--top-p", type=float, default=None, help=f"keep this much probability; 1 keeps all ({own})")
    parser.add_argument(
        "--mode", default=None, help="next_token, maskgit or frame, as far as trained (default: the model's first)"
    )
    parser.add_argument("--steps", type=int, default=None, help=f"refinements of the masked modes ({own})")
    parser.add_argument(
        "--choice-temperature", type=float, default=None, help=f"noise in what they keep; 0 keeps the surest ({own})"
    )
    parser.add_argument(
        "--candidates",
        type=int,
        default=None,
        help=f"draw so many clips and keep the one whose caption the model finds likeliest ({own})",
    )
    parser.add_argument(
        "--hybrid",
        action="store_true",
        help="draw what the codes round off with the model's diffusion head: detail, and grain",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise: the same draws the same (default 0)")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the model's steps first: slower for one clip of a small model, for a large one faster",
    )


def run(arguments: argparse.Namespace) -> int:
    """Generate, write the file with its caption and provenance, print its path."""
    output = Path(arguments.output)
    if output.exists() and not arguments.force:
        raise DataError(f"{output} exists: give another name, or -f to overwrite it")
    height, width = parse_size(arguments.size) if arguments.size is not None else (None, None)
    check_caption(arguments.caption)
    check_drawing(arguments)
    check_destination(output, _FPS if arguments.fps is None else arguments.fps)
    from transformers.utils import logging as transformers_logging

    from tokvid.frames import to_pictures
    from tokvid.head_files import drawn_by
    from tokvid.runtime import default_device, loading_dtype
    from tokvid_lm import TextSegment, VideoLM, VideoSegment
    from tokvid_lm.made_by import made_by, model_id

    transformers_logging.disable_progress_bar()  # one for every file of weights
    lm = VideoLM.from_pretrained(arguments.model, dtype=loading_dtype()).to(default_device())
    settings = {
        "guidance_scale": arguments.guidance,
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "steps": arguments.steps,
        "choice_temperature": arguments.choice_temperature,
        # Without a caption there is nothing to choose by, whatever the model is set to.
        "candidates": arguments.candidates if arguments.caption.strip() else arguments.candidates or 1,
        "seed": arguments.seed,
    }
    sampling = lm.sampling_for(arguments.mode).override(**settings)
    (clip,) = lm.generate(
        [TextSegment(arguments.caption)],
        mode=arguments.mode,
        num_frames=arguments.frames,
        height=height,
        width=width,
        compiled=arguments.compile,
        hybrid=arguments.hybrid,
        **settings,
    )
    prompt = lm.processor.encode_prompt([TextSegment(arguments.caption)]).tolist()
    drew = lm.diffusion_head if arguments.hybrid or lm.is_continuous else None
    facts = made_by(
        lm,
        name=Path(arguments.model).name,
        model=model_id(lm),
        sampling=sampling,
        prompt=prompt,
        caption=arguments.caption,
        compiled=arguments.compile,
        refinement=None if drew is None else drawn_by(drew, lm.refinement),
    )
    assert isinstance(clip, VideoSegment) and clip.frames is not None
    pictures = to_pictures(clip.frames)[0]
    fps = arguments.fps or lm.settings.fps or _FPS
    write_video(output, Video(frames=pictures, fps=fps), metadata={"tokvid": json.dumps(facts)})
    print(output)
    return 0


def check_caption(caption: str) -> None:
    """Raise :class:`UsageError` for bytes that are no text, which Python hides in a command line as half characters."""
    from tokvid.cli.main import UsageError

    try:
        caption.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the caption's character {error.start + 1} is no UTF-8 text; write the caption in UTF-8"
        ) from error


def parse_size(text: str) -> tuple[int, int]:
    """``HxW`` as two positive integers; :class:`ModelError` for anything else."""
    height, cross, width = text.lower().partition("x")
    if not cross or not (height.isdecimal() and width.isdecimal()) or not (int(height) and int(width)):
        raise ModelError(f"a size is written HxW, for example 32x32, got {text!r}")
    return int(height), int(width)
