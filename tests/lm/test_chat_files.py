"""Clips as a model was trained to see them, and conversations in folders that come back id for id."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.lm.tiny_chat import build
from tokvid import Video, write_video
from tokvid.codes_file import CodesFile
from tokvid.errors import CheckpointError, DataError, VideoError
from tokvid_lm import TextSegment, VideoLM, VideoSegment
from tokvid_lm.chat import Chat
from tokvid_lm.chat_files import load_conversation, read_clip, save_clip, save_conversation
from tokvid_lm.made_by import made_by, model_id
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.segments import Turn
from tokvid_lm.video_settings import VideoSettings


@pytest.fixture(scope="module")
def lm() -> VideoLM:
    return build()


def film(path: Path, *, frames: int, fps: float = 8.0, side: int = 24) -> Path:
    pictures = np.random.default_rng(frames).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)
    write_video(path, Video(frames=pictures, fps=fps))
    return path


def conversation(lm: VideoLM) -> list[Turn]:
    codes = torch.randint(1000, (1, 1, 2, 2, 2), generator=torch.Generator().manual_seed(0))
    picture = VideoSegment(frames=torch.zeros(1, 3, 1, 16, 16))
    clip = VideoSegment(codes=codes, num_frames=4, fps=8.0)
    return [
        Turn("user", (TextSegment("what is <|video|>?\n"), picture, clip)),
        Turn("assistant", (TextSegment("ä fox"), clip, TextSegment("done"))),
        Turn("user", (clip,)),
        Turn("assistant", ()),
    ]


def test_a_clip_has_the_trained_shape_and_a_long_one_says_what_was_taken(lm: VideoLM, tmp_path: Path) -> None:
    long = film(tmp_path / "long.mp4", frames=80)
    clip = read_clip(lm, long)
    assert clip.segment.frames is not None and clip.segment.frames.shape == (1, 3, 5, 16, 16)
    assert clip.note is not None and "of 10.0 s the model reads 0.6 s from 0 s on" in clip.note
    window = read_clip(lm, long, start=2.0, end=2.5)
    assert window.segment.frames is not None and window.segment.frames.shape[2] == 4 and window.note is None
    beyond = read_clip(lm, long, start=2.0, end=500.0).note
    assert beyond is not None and re.match(r".*/long\.mp4 ends at [\d.]+ s, before 500 s", beyond), beyond
    short = read_clip(lm, film(tmp_path / "short.mp4", frames=3))
    assert short.segment.frames is not None and short.segment.frames.shape[2] == 3 and short.note is None
    first = read_clip(lm, long, picture=True)
    assert first.segment.frames is not None and first.segment.frames.shape[2] == 1 and first.segment.fps is None


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_is_a_clip_of_one_frame(suffix: str, lm: VideoLM, tmp_path: Path) -> None:
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(np.full((40, 30, 3), 200, np.uint8)).save(path)
    clip = read_clip(lm, path)
    assert clip.segment.frames is not None and clip.segment.frames.shape == (1, 3, 1, 16, 16)
    assert clip.segment.fps is None and clip.note is None


def test_what_cannot_be_shown_is_a_line(lm: VideoLM, tmp_path: Path) -> None:
    path = film(tmp_path / "clip.mp4", frames=8)
    with pytest.raises(DataError, match="nothing begins at 3 s"):
        read_clip(lm, path, start=3.0)
    for start, end in ((2.0, 1.0), (float("nan"), None), (float("inf"), None), (0.0, float("inf")), (-1.0, None)):
        with pytest.raises(DataError, match="an end after it"):
            read_clip(lm, path, start=start, end=end)
    with pytest.raises(DataError, match="nothing begins"):
        read_clip(lm, path, start=1e300)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "half.mp4").write_bytes(path.read_bytes()[:300])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    Image.new("1", (10_000, 8_000)).save(tmp_path / "enormous.png")
    with pytest.raises(DataError, match="frames of 8000x10000 pixels, at most 67,108,864"):
        read_clip(lm, tmp_path / "enormous.png")
    for name in ("none.mp4", "empty.mp4", "noise.mp4", "half.mp4", "sound.mp4"):
        with pytest.raises(VideoError, match=name):
            read_clip(lm, tmp_path / name)


def test_a_model_of_several_sizes_takes_a_clip_as_it_is(tmp_path: Path) -> None:
    lm = build(context=511)  # a model of its own: its settings are changed
    lm.settings = VideoSettings(sampling=lm.settings.sampling)
    clip = read_clip(lm, film(tmp_path / "odd.mp4", frames=4, side=29))
    assert clip.segment.frames is not None and clip.segment.frames.shape == (1, 3, 4, 24, 24)


def test_a_conversation_comes_back_id_for_id(lm: VideoLM, tmp_path: Path) -> None:
    chat = Chat(lm)
    chat.load(conversation(lm))
    save_conversation(lm, chat.turns, tmp_path / "kept")
    other = Chat(lm)
    other.load(load_conversation(lm, tmp_path / "kept"))
    assert np.array_equal(other.document().ids, chat.document().ids)
    assert [turn.role for turn in other.turns] == [turn.role for turn in chat.turns]
    save_conversation(lm, chat.turns[:2], tmp_path / "kept")  # a conversation is replaced
    assert len(load_conversation(lm, tmp_path / "kept")) == 2
    for name in ("letter.txt", "clip-001.mp4"):  # beside a conversation, too
        (tmp_path / "kept" / name).touch()
        with pytest.raises(CheckpointError, match=f"holds {name}"):
            save_conversation(lm, chat.turns, tmp_path / "kept")
        (tmp_path / "kept" / name).unlink()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file, and a conversation"):
        save_conversation(lm, chat.turns, tmp_path / "file")


def test_a_conversation_that_was_tampered_with_is_refused(lm: VideoLM, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    save_conversation(lm, conversation(lm), folder)
    path = folder / "conversation.json"
    facts = json.loads(path.read_text())
    with pytest.raises(CheckpointError, match="holds no conversation"):
        load_conversation(lm, tmp_path)
    for changed, message in (
        ({"format_version": 2}, "format_version"),
        ({"codec_id": "tokvid-0"}, "another|this model speaks"),
        ({"turns": [{"role": "system", "content": []}]}, "damaged"),
        ({"turns": [{"role": "user", "content": [{"type": "video"}]}]}, "damaged"),
        ({"turns": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]}, "damaged"),
        ({"turns": [{"role": "user", "content": [{"type": "video", "file": "../x.tokvid"}]}]}, "no file beside it"),
        ({"turns": [{"role": "user", "content": [{"type": "video", "file": "none.tokvid"}]}]}, "does not exist"),
    ):
        path.write_text(json.dumps(facts | changed))
        with pytest.raises(CheckpointError, match=message):
            load_conversation(lm, folder)


def test_a_clip_says_what_made_it_and_the_digest_tells_models_apart(lm: VideoLM, tmp_path: Path) -> None:
    from tokvid.video import probe_video

    facts = made_by(lm, name="mine", model=model_id(lm), sampling=Sampling(seed=3), prompt=[1, 2])
    codes = torch.zeros(1, 1, 2, 2, 2, dtype=torch.int64)
    save_clip(lm, VideoSegment(codes=codes, num_frames=5, fps=8.0, made_by=facts), tmp_path / "clip.mp4")
    found = json.loads(probe_video(tmp_path / "clip.mp4").metadata["tokvid"])
    assert found["model"] == "mine" and found["seed"] == 3 and found["model_id"] == model_id(lm)
    other = made_by(lm, name="mine", model=model_id(lm), sampling=Sampling(seed=3), prompt=[2, 1])
    # So does a saved conversation, of what was drawn and of what was shown.
    drawn = VideoSegment(codes=codes, num_frames=5, fps=8.0, made_by=facts)
    shown = read_clip(lm, tmp_path / "clip.mp4").segment
    save_conversation(lm, [Turn("user", (shown,)), Turn("assistant", (drawn,))], tmp_path / "kept")
    (_, one), (_, two) = ((turn.role, turn.segments[0]) for turn in load_conversation(lm, tmp_path / "kept"))
    assert isinstance(one, VideoSegment) and one.made_by is not None and one.made_by["source"] == "clip.mp4"
    assert isinstance(two, VideoSegment) and two.made_by == facts
    assert CodesFile(tmp_path / "kept" / "clip-002.tokvid").facts.made_by == facts | {"fps": 8.0}
    assert other["prompt_sha256"] != facts["prompt_sha256"]
    changed = build(context=510)
    before = model_id(changed)
    with torch.no_grad():
        changed.model.get_output_embeddings().weight.mul_(1.01)
    assert model_id(changed) != before
