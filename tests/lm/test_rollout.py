"""Frames as they are done, and videos longer than the context: what follows begins with what came before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.lm.tiny import build_model, build_tokenizer
from tokvid.errors import ConfigError, ModelError
from tokvid.grid import Grid
from tokvid_lm import TextSegment, VideoLM, VideoSegment
from tokvid_lm import rollout as rollout_module
from tokvid_lm.rollout import Rollout
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.tasks import first_frames
from tokvid_lm.video_settings import VideoSettings
from tokvid_lm.vocabulary import MODES
from tokvid_tokenizers import load_codec

CAT = [TextSegment("a cat")]
SIZE: dict[str, Any] = {"height": 16, "width": 16}


@pytest.fixture(scope="module")
def lm() -> VideoLM:
    model = VideoLM.extend(build_model("llama"), codec=load_codec("preset:tiny"), tokenizer=build_tokenizer())
    sampling = tuple(Sampling(mode=mode, steps=3, guidance_scale=2.0) for mode in MODES)
    model.settings = VideoSettings(sampling=sampling, latent_frames=4)
    return model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_frames", [1, 7, 13])
def test_a_stream_is_the_clip_that_generate_draws(lm: VideoLM, mode: str, num_frames: int) -> None:
    pieces = list(lm.stream(CAT, mode=mode, num_frames=num_frames, **SIZE))
    (clip,) = lm.generate(CAT, mode=mode, num_frames=num_frames, **SIZE)
    assert isinstance(clip, VideoSegment) and clip.frames is not None
    assert torch.equal(torch.cat(pieces, dim=2), clip.frames)
    assert all(piece.shape[2] > 0 for piece in pieces)
    if mode != "maskgit" and num_frames == 13:
        assert [piece.shape[2] for piece in pieces] == [1, 12], "a block of the codec's stream at a time"


def chunks_of(monkeypatch: pytest.MonkeyPatch, lm: VideoLM, rollout: Rollout, num_frames: int, mode: str) -> Any:
    """The (given codes, new codes) of every chunk of a long video, and its frames."""
    seen: list[tuple[Tensor | None, list[Tensor]]] = []
    plain = rollout_module._chunk

    def spy(run: Any, drawn: int, given: Tensor | None) -> Any:
        new: list[Tensor] = []
        seen.append((given, new))
        for codes in plain(run, drawn, given):
            new.append(codes)
            yield codes

    with monkeypatch.context() as patch:
        patch.setattr(rollout_module, "_chunk", spy)
        frames = torch.cat(list(lm.stream(CAT, mode=mode, num_frames=num_frames, rollout=rollout, **SIZE)), dim=2)
    return [(given, torch.cat(new, dim=2)) for given, new in seen], frames


@pytest.mark.parametrize("mode", MODES)
def test_a_window_keeps_the_first_and_the_last_latent_frames(
    lm: VideoLM, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks, frames = chunks_of(monkeypatch, lm, Rollout(overlap=2, sinks=1), 33, mode)
    assert frames.shape == (1, 3, 33, 16, 16)
    whole = torch.cat([new for _, new in chunks], dim=2)
    assert [new.shape[2] for _, new in chunks] == [4, 1, 1, 1, 1, 1]
    drawn = 4
    for given, new in chunks[1:]:
        expected = torch.cat([whole[:, :, :1], whole[:, :, drawn - 2 : drawn]], dim=2)
        assert torch.equal(given, expected)
        drawn += new.shape[2]
    # One long video for the codec: no seam.
    torch.testing.assert_close(frames, lm.codec.decode(whole, num_frames=33), atol=1e-5, rtol=0)
    assert len(torch.unique(whole[0, 0].flatten(1), dim=0)) == 9, "every chunk has noise of its own"


@pytest.mark.parametrize("mode", MODES)
def test_encoding_anew_makes_the_last_frames_the_beginning_of_a_clip(
    lm: VideoLM, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks, frames = chunks_of(monkeypatch, lm, Rollout(kind="reencode", overlap=2), 29, mode)
    assert frames.shape == (1, 3, 29, 16, 16)
    end = 13
    for given, new in chunks[1:]:
        assert torch.equal(given, lm.codec.encode(frames[:, :, end - 5 : end]))
        clip = lm.codec.decode(torch.cat([given, new], dim=2))
        length = min(8, 29 - end)
        torch.testing.assert_close(frames[:, :, end : end + length], clip[:, :, 5 : 5 + length], atol=1e-5, rtol=0)
        end += 8


def test_a_continuation_may_be_long_too(lm: VideoLM) -> None:
    codes = torch.arange(16).view(1, 1, 4, 2, 2) * 50
    video = VideoSegment(codes=codes, known=first_frames(Grid(t=4, h=2, w=2), 2))
    frames = torch.cat(list(lm.stream([*CAT, video], num_frames=21, rollout=Rollout(), **SIZE)), dim=2)
    torch.testing.assert_close(frames[:, :, :5], lm.codec.decode(codes[:, :, :2]), atol=1e-5, rtol=0)


def test_what_cannot_go_on_is_refused(lm: VideoLM) -> None:
    def stream(rollout: Rollout, **changes: Any) -> None:
        list(lm.stream(CAT, num_frames=33, rollout=rollout, **SIZE, **changes))

    with pytest.raises(ModelError, match="a chunk of 3 latent frames begins with 3 given ones"):
        stream(Rollout(latent_frames=3))
    with pytest.raises(ModelError, match="the model's context has 256"):
        list(lm.stream(CAT, num_frames=301, **SIZE))
    with pytest.raises(ConfigError, match="overlap"):
        Rollout(overlap=0)
    known = torch.zeros(9, 2, 2, dtype=torch.bool)
    known[8] = True
    video = VideoSegment(codes=torch.zeros(1, 1, 9, 2, 2, dtype=torch.int64), known=known)
    with pytest.raises(ModelError, match="only be given in its first 4 latent frames"):
        list(lm.stream([*CAT, video], rollout=Rollout(), **SIZE))
    settings = lm.settings
    lm.settings = replace(settings, latent_frames=None)
    try:
        with pytest.raises(ModelError, match="nobody said how long the clips were"):
            stream(Rollout())
    finally:
        lm.settings = settings
