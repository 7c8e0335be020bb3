"""Clips and conversations in files: a video as the model was trained to see it, and all that was said in a folder.

Codes are kept beside words, so that a conversation that is loaded is the one that was saved, id for id.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tokvid.atomic import atomic_folder
from tokvid.codes_file import SUFFIX, CodesFacts, CodesFile, write_codes
from tokvid.errors import CheckpointError, DataError, ShapeError
from tokvid.frames import to_model, to_pictures
from tokvid.provenance import provenance
from tokvid.saved_json import read_mapping
from tokvid.video import Video, check_window, count_frames, probe_video, read_video, write_video
from tokvid_lm.processor import codec_device
from tokvid_lm.segments import Segment, TextSegment, Turn, VideoSegment
from tokvid_lm.video_lm import VideoLM

CONVERSATION_FILE = "conversation.json"
FORMAT_VERSION = 1
DEFAULT_FPS = 8.0  # of a model that was trained on clips of several rates
_OURS = re.compile(r"conversation\.json|clip-\d+\.tokvid")
_MOST_PIXELS = 1 << 26  # of a frame: small files of enormous pictures would take all memory
_MOST_FRAMES = 17  # of a clip, for a model that was trained on several lengths


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadClip:
    """A clip to show to a model; ``note`` says what of the file it is, where it is not all of it, and ``size`` (H, W)
    how large its frames are in the file."""

    segment: VideoSegment
    size: tuple[int, int]
    note: str | None


def read_clip(
    lm: VideoLM, path: str | Path, *, start: float = 0.0, end: float | None = None, picture: bool = False
) -> ReadClip:
    """A video or a picture as the model was trained to see clips: of that size, rate and at most that length.

    With ``picture`` the first picture of a video alone.

    Of a longer video the window from ``start`` seconds on is taken, and the note says so, and where the video ends
    before ``end``. Raises :class:`~tokvid.errors.VideoError` for a file that cannot be read, :class:`DataError` for an
    empty window.
    """
    start = 0.0 if picture else start
    check_window(start, end)
    settings, info = lm.settings, probe_video(path)
    if info.height * info.width > _MOST_PIXELS:
        raise DataError(
            f"{path} has frames of {info.height}x{info.width} pixels, at most {_MOST_PIXELS:,} are read here: show it"
            " smaller"
        )
    stride = lm.codec.spatial_stride
    if settings.height is not None and settings.width is not None:
        size = (settings.height, settings.width)
    else:
        size = (max(stride, info.height // stride * stride), max(stride, info.width // stride * stride))
    fps = settings.fps or DEFAULT_FPS
    most = settings.num_frames or _MOST_FRAMES
    is_picture = picture or (info.num_frames in (None, 1) and info.duration_s * info.fps <= 1.5)
    start = 0.0 if is_picture else start  # there is no later
    whole = 1 if is_picture else count_frames(info, fps) - round(start * fps)
    if whole < 1:
        raise DataError(f"{path} lasts {info.duration_s:.3g} s, so nothing begins at {start:g} s: start earlier")
    asked = whole if end is None else max(1, round((end - start) * fps))
    wanted = min(whole, asked)
    count = min(wanted, most)
    video = read_video(path, start=start, num_frames=count, fps=fps, size=size)
    notes = []
    if end is not None and wanted < asked and end > info.duration_s and not is_picture:
        notes.append(f"{path} ends at {info.duration_s:.3g} s, before {end:g} s")
    if count < wanted:
        notes.append(
            f"{path}: of {wanted / fps:.1f} s the model reads {count / fps:.1f} s from {start:g} s on ({count} frames"
            f" at {fps:g} fps)"
        )
    frames = to_model(video.frames[None])
    segment = VideoSegment(
        frames=frames,
        num_frames=count,
        fps=None if is_picture else settings.fps,
        made_by={"source": Path(path).name, "codec": lm.codec.codec_id, **provenance()},
    )
    return ReadClip(segment=segment, size=(info.height, info.width), note="; ".join(notes) or None)


def pictures_of(lm: VideoLM, segment: VideoSegment) -> Any:
    """The frames of a segment, uint8 ``[T,H,W,3]``; of codes alone they are decoded."""
    frames = segment.frames
    if frames is None:
        assert segment.codes is not None
        with torch.inference_mode():
            codes = segment.codes.to(codec_device(lm.codec))
            frames = lm.codec.decode(codes, num_frames=lm.processor.num_frames_of(segment)).cpu()
    return to_pictures(frames)[0]


def save_clip(lm: VideoLM, segment: VideoSegment, path: Path) -> None:
    """Write a clip as a video file that says what made it, where that is known."""
    video = Video(frames=pictures_of(lm, segment), fps=segment.fps or lm.settings.fps or DEFAULT_FPS)
    made_by = segment.made_by
    write_video(path, video, metadata=None if made_by is None else {"tokvid": json.dumps(dict(made_by))})


def save_conversation(lm: VideoLM, turns: Sequence[Turn], folder: str | Path) -> None:
    """Write turns into ``folder``: words in ``conversation.json``, clips as ``.tokvid`` files beside it.

    An earlier conversation there is replaced; a folder that holds anything else raises :class:`CheckpointError`.
    """
    folder = Path(folder)
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file, and a conversation is saved as a folder: give another name")
    strange = (
        sorted(path.name for path in folder.iterdir() if not _OURS.fullmatch(path.name)) if folder.is_dir() else []
    )
    if strange:
        raise CheckpointError(
            f"{folder} holds {strange[0]}, which is no part of a conversation and would be lost: choose another folder"
        )
    with atomic_folder(folder) as beside:
        said: list[dict[str, Any]] = []
        clips = 0
        for turn in turns:
            content: list[dict[str, str]] = []
            for segment in turn.segments:
                if isinstance(segment, TextSegment):
                    content.append({"type": "text", "text": segment.text})
                    continue
                clips += 1
                name = f"clip-{clips:03d}{SUFFIX}"
                _save_codes(lm, segment, beside / name)
                content.append({"type": "video", "file": name})
            said.append({"role": turn.role, "content": content})
        facts = {"format_version": FORMAT_VERSION, "codec_id": lm.codec.codec_id, "turns": said}
        text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        (beside / CONVERSATION_FILE).write_text(text, encoding="utf-8")


def load_conversation(lm: VideoLM, folder: str | Path) -> list[Turn]:
    """The turns that :func:`save_conversation` wrote; :class:`CheckpointError` for anything else, for clips of another
    codec, and for a clip whose name leads out of the folder."""
    path = Path(folder) / CONVERSATION_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: this folder holds no conversation; save one with /save")
    facts = read_mapping(path, "conversation")
    if facts.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format_version {facts.get('format_version')!r}, this tokvid reads {FORMAT_VERSION}: update it"
        )
    if facts.get("codec_id") != lm.codec.codec_id:
        raise CheckpointError(
            f"{path} holds clips of the codec {facts.get('codec_id')!r}, this model speaks {lm.codec.codec_id}: load it"
            " with the model that it was held with"
        )
    try:
        return [
            Turn(turn["role"], tuple(_load_segment(lm, path.parent, piece) for piece in turn["content"]))
            for turn in facts["turns"]
        ]
    except (KeyError, TypeError, AttributeError, UnicodeEncodeError, ShapeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}; save the conversation again") from error


def _load_segment(lm: VideoLM, folder: Path, piece: dict[str, str]) -> Segment:
    if piece["type"] == "text":
        piece["text"].encode()  # half characters are no text
        return TextSegment(piece["text"])
    name = piece["file"]
    if Path(name).name != name or name in ("", ".", ".."):
        raise CheckpointError(f"{folder / CONVERSATION_FILE} names the clip {name!r}, which is no file beside it")
    file = CodesFile(folder / name)
    if file.facts.codec_id != lm.codec.codec_id:
        raise CheckpointError(f"{folder / name} holds codes of {file.facts.codec_id!r}, not of {lm.codec.codec_id}")
    codes = torch.from_numpy(file.read())[None]
    made_by = dict(file.facts.made_by)
    fps = made_by.pop("fps", None)
    if fps is not None and not (isinstance(fps, int | float) and math.isfinite(fps) and fps > 0):
        raise ShapeError(f"the clip {name} has the rate {fps!r}")
    return VideoSegment(codes=codes, num_frames=file.facts.num_frames, fps=fps, made_by=made_by or None)


def _save_codes(lm: VideoLM, segment: VideoSegment, path: Path) -> None:
    codec, codes = lm.codec, lm.processor.codes_of(segment)
    stride = codec.spatial_stride
    facts = CodesFacts(
        codec_id=codec.codec_id,
        codebook_size=codec.codebook_size,
        num_codebooks=codec.num_codebooks,
        temporal_stride=codec.temporal_stride,
        spatial_stride=stride,
        num_frames=lm.processor.num_frames_of(segment),
        height=codes.shape[3] * stride,
        width=codes.shape[4] * stride,
        fps=segment.fps or lm.settings.fps or DEFAULT_FPS,
        # With the rate that the model read; a picture has none.
        made_by={**(segment.made_by or {}), "fps": segment.fps},
    )
    write_codes(path, codes[0].numpy(), facts)
