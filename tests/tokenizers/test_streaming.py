"""A stream gives what the whole clip gives, bit by bit, however it is cut, and forgets nothing it needs."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tokenizers.lively import ALL_KINDS, SMALLEST, lively_preset, noise, smallest_codec
from tokvid.errors import CheckpointError, ModelError, ShapeError
from tokvid_tokenizers import VideoCodec
from tokvid_tokenizers.layers.past import Past
from tokvid_tokenizers.layers.residual import ResidualBlock
from tokvid_tokenizers.presets import PRESETS
from tokvid_tokenizers.streaming import StreamDecoder, StreamEncoder, blocks_of

SIZE = 16
CUTS = st.lists(st.integers(0, 9), min_size=1, max_size=8)


def cut(clip: Tensor, lengths: list[int]) -> list[Tensor]:
    """``clip`` cut along time into pieces of these lengths, over and over, empty ones left out."""
    pieces, start, turn = [], 0, 0
    while start < clip.shape[2]:
        length = max(1, lengths[turn % len(lengths)])
        pieces.append(clip[:, :, start : start + length])
        start, turn = start + length, turn + 1
    return pieces


def streamed_codes(codec: VideoCodec, pieces: list[Tensor]) -> Tensor:
    with codec.stream_encoder(batch_size=len(pieces[0])) as stream:
        return torch.cat([*(stream.push(piece) for piece in pieces), stream.finish()], dim=2)


def streamed_frames(codec: VideoCodec, pieces: list[Tensor]) -> Tensor:
    with codec.stream_decoder(batch_size=len(pieces[0])) as stream:
        return torch.cat([*(stream.push(piece) for piece in pieces), stream.finish()], dim=2)


@pytest.fixture(scope="module", params=PRESETS)
def codec(request: pytest.FixtureRequest) -> VideoCodec:
    return lively_preset(request.param)


@settings(max_examples=12, deadline=None)
@given(num_frames=st.integers(1, 60), lengths=CUTS, batch=st.integers(1, 2))
def test_streamed_is_whole_to_the_last_bit(num_frames: int, lengths: list[int], batch: int) -> None:
    codec = smallest_codec()
    frames = noise(batch, 3, num_frames, SIZE, SIZE)
    codes = codec.encode(frames)
    assert torch.equal(streamed_codes(codec, cut(frames, lengths)), codes)
    assert torch.equal(streamed_frames(codec, cut(codes, lengths)), codec.decode(codes))


def test_every_preset_streams(codec: VideoCodec) -> None:
    frames = noise(1, 3, 38, SIZE, SIZE)
    codes = codec.encode(frames)
    assert torch.equal(streamed_codes(codec, cut(frames, [3, 7, 1])), codes)
    assert torch.equal(streamed_frames(codec, cut(codes, [2, 1, 4])), codec.decode(codes))


@pytest.mark.parametrize(
    "change",
    [{"stream_block": 1}, {"stream_block": 7}, {"temporal_stride": 1}, {"key_frames": True}, {"local_encoder": True}],
    ids=str,
)
def test_every_setting_streams(change: dict[str, object]) -> None:
    codec = smallest_codec(config=dataclasses.replace(SMALLEST, **change))  # type: ignore[arg-type]
    frames = noise(1, 3, 39, SIZE, SIZE)
    codes = codec.encode(frames)
    assert torch.equal(streamed_codes(codec, cut(frames, [5, 1])), codes)
    assert torch.equal(streamed_frames(codec, cut(codes, [3, 1])), codec.decode(codes))


def test_blocks_are_what_the_whole_clip_at_once_gives_up_to_rounding(codec: VideoCodec) -> None:
    frames = noise(1, 3, 34, SIZE, SIZE)
    torch.testing.assert_close(codec.encode_latents(frames), codec.encoder(frames), atol=1e-5, rtol=0)
    latents = noise(1, codec.quantizer.dim, 10, 2, 2)
    torch.testing.assert_close(codec.decode_latents(latents), codec.decoder(latents), atol=1e-5, rtol=0)


def test_without_the_past_codes_and_frames_change(codec: VideoCodec) -> None:
    """Else equality would only show that nothing looks back."""
    block = codec.config.stream_block
    frames = noise(1, 3, 1 + 2 * block * codec.temporal_stride, SIZE, SIZE)
    codes = codec.encode(frames)
    forgetful = [
        codec.encode_block(part, forgotten(number))
        for number, part in enumerate(blocks_of(frames, block * codec.temporal_stride))
    ]
    assert torch.equal(forgetful[0], codes[:, :, :1])
    assert not torch.equal(torch.cat(forgetful[1:], dim=2), codes[:, :, 1:])
    forgetful = [codec.decode_block(part, forgotten(number)) for number, part in enumerate(blocks_of(codes, block))]
    decoded = codec.decode(codes)
    assert torch.equal(forgetful[0], decoded[:, :, :1])
    assert (torch.cat(forgetful[1:], dim=2) - decoded[:, :, 1:]).abs().max() > 1e-3


def forgotten(number: int) -> Past:
    """What block ``number`` of a clip finds when nothing was kept."""
    past = Past()
    past.begun = number > 0
    return past


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_many_streams_run_on_one_codec_by_turns(kind: str) -> None:
    """Each of another length, size and batch, cut otherwise, opened and finished while others run."""
    codec = smallest_codec(config=ALL_KINDS[kind])
    stride = codec.spatial_stride
    clips = [noise(1 + n % 2, 3, 20 + 7 * n, 2 * stride, (2 + n) * stride, seed=n) for n in range(6)]
    expected = [codec.encode(clip) for clip in clips]
    with ExitStack() as stack:
        streams: list[StreamEncoder | StreamDecoder] = []
        waiting: list[list[Tensor]] = []
        got: list[list[Tensor]] = [[] for _ in range(2 * len(clips))]
        for clip, codes in zip(clips, expected, strict=True):
            streams += [codec.stream_encoder(len(clip)), codec.stream_decoder(len(clip))]
            waiting += [cut(clip, [len(streams), 1, 5]), cut(codes, [1, len(streams)])]
        for turn in range(len(waiting) + max(map(len, waiting))):
            for number, (stream, pieces) in enumerate(zip(streams, waiting, strict=True)):
                place = turn - number
                if place == 0:
                    stack.enter_context(stream)
                if 0 <= place < len(pieces):
                    got[number].append(stream.push(pieces[place]))
                if place == len(pieces):
                    got[number].append(stream.finish())
    for number, (clip, codes) in enumerate(zip(clips, expected, strict=True)):
        assert torch.equal(torch.cat(got[2 * number], dim=2), codes)
        assert torch.equal(torch.cat(got[2 * number + 1], dim=2), codec.decode(codes)), clip.shape


def test_streams_of_several_threads_do_not_meet() -> None:
    codec = lively_preset("tiny")
    clips = [noise(1, 3, 40, SIZE, SIZE, seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda clip: streamed_codes(codec, cut(clip, [3, 1])), clips))
    assert all(torch.equal(codes, codec.encode(clip)) for clip, codes in zip(clips, found, strict=True))


@pytest.mark.parametrize("stop", [0, 1, 5, 17, 30])
def test_a_stream_goes_on_from_its_state(stop: int) -> None:
    codec = lively_preset("tiny")
    frames = noise(1, 3, 41, SIZE, SIZE)
    with codec.stream_encoder() as stream:
        codes = [stream.push(frames[:, :, :stop])] if stop else []
        state = stream.state()
    with codec.stream_encoder() as stream:
        stream.restore(state)
        codes += [stream.push(frames[:, :, stop:]), stream.finish()]
    assert torch.equal(torch.cat(codes, dim=2), codec.encode(frames))


def test_a_state_of_another_codec_is_refused() -> None:
    with lively_preset("tiny").stream_encoder() as stream:
        stream.push(noise(1, 3, 1, SIZE, SIZE))
        state = stream.state()
    codec = smallest_codec()
    for wrong in ({**state, "past.nowhere": state["waiting"]}, {"past.blocks": state["waiting"]}):
        with codec.stream_encoder() as stream, pytest.raises(CheckpointError, match="another codec"):
            stream.restore(wrong)


def test_nothing_comes_before_a_block_is_full() -> None:
    codec = smallest_codec()
    with codec.stream_encoder() as stream:
        counts = [stream.push(noise(1, 3, 1, SIZE, SIZE)).shape[2] for _ in range(1 + 2 * 16)]
        assert counts == [1, *[0] * 15, 4, *[0] * 15, 4]
        assert stream.finish().shape == (1, 1, 0, 4, 4)


def test_a_stream_that_is_not_open_is_refused() -> None:
    codec = smallest_codec()
    frames = noise(1, 3, 1, SIZE, SIZE)
    with pytest.raises(ModelError, match="enter it with 'with'"):
        codec.stream_encoder().push(frames)
    with codec.stream_encoder() as stream:
        with pytest.raises(ModelError, match="nothing was pushed"):
            stream.finish()
        stream.push(frames)
        stream.finish()
        with pytest.raises(ModelError, match="is finished"):
            stream.push(frames)
    with pytest.raises(ModelError, match="is finished"), stream:
        pass


def test_what_does_not_fit_a_stream_is_refused() -> None:
    codec = smallest_codec()
    with codec.stream_encoder(batch_size=2) as stream:
        with pytest.raises(ShapeError, match="batch_size=2"):
            stream.push(noise(1, 3, 1, SIZE, SIZE))
        stream.push(noise(2, 3, 1, SIZE, SIZE))
        with pytest.raises(ShapeError, match="keep their size"):
            stream.push(noise(2, 3, 1, SIZE, 2 * SIZE))
    with pytest.raises(ShapeError, match="at least 1"):
        codec.stream_encoder(batch_size=0)


def test_every_layer_that_looks_back_leaves_something() -> None:
    codec = lively_preset("tiny")
    with codec.stream_encoder() as stream:
        stream.push(noise(1, 3, 1, SIZE, SIZE))
        names = {name.removeprefix("past.") for name in stream.state()} - {"waiting"}
    layers = {name for name, layer in codec.encoder.named_modules() if isinstance(layer, ResidualBlock)}
    assert names == layers
