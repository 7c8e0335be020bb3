"""A stream gives what the whole clip gives, bit by bit, however it is cut, and forgets nothing it needs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tokenizers.lively import SMALLEST, lively_preset, noise, smallest_codec
from tokvid.errors import CheckpointError, ModelError, ShapeError
from tokvid_tokenizers import VideoCodec, list_codecs
from tokvid_tokenizers.layers.past import Past
from tokvid_tokenizers.layers.residual import ResidualBlock
from tokvid_tokenizers.streaming import blocks_of

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


@pytest.fixture(scope="module", params=[name.removeprefix("preset:") for name in list_codecs() if "base" not in name])
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


def test_without_the_past_the_codes_change() -> None:
    """Else equality would only show that nothing looks back."""
    codec = lively_preset("tiny")
    frames = noise(1, 3, 33, SIZE, SIZE)
    forgetful = []
    for number, block in enumerate(blocks_of(frames, 16)):
        past = Past()
        past.begun = number > 0
        forgetful.append(codec.encode_block(block, past))
    whole = codec.encode(frames)
    assert torch.equal(forgetful[0], whole[:, :, :1])
    assert not torch.equal(torch.cat(forgetful, dim=2)[:, :, 1:], whole[:, :, 1:])


def test_many_streams_run_on_one_codec() -> None:
    codec = lively_preset("tiny")
    first, second = noise(1, 3, 40, SIZE, SIZE), noise(1, 3, 40, SIZE, SIZE, seed=1)
    with codec.stream_encoder() as one, codec.stream_encoder() as other:
        got: list[list[Tensor]] = [[], []]
        for a, b in zip(cut(first, [7]), cut(second, [7]), strict=True):
            got[0].append(one.push(a))
            got[1].append(other.push(b))
        got[0].append(one.finish())
        got[1].append(other.finish())
    assert torch.equal(torch.cat(got[0], dim=2), codec.encode(first))
    assert torch.equal(torch.cat(got[1], dim=2), codec.encode(second))


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
