"""The factorised and the transformer codec: what they see and what they never see, in any setting and in any pieces."""

from __future__ import annotations

import dataclasses
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from tests.tokenizers.lively import FACTORISED, LINEAR, NEW_KINDS, TRANSFORMER, noise, smallest_codec
from tokvid.errors import CheckpointError
from tokvid_tokenizers import FactorisedCodecConfig, VideoCodec
from tokvid_tokenizers.codec_config import AnyCodecConfig
from tokvid_tokenizers.layers.past import Past
from tokvid_tokenizers.quantizers import FSQConfig
from tokvid_tokenizers.streaming import blocks_of

SIZE = 12
THREE = FactorisedCodecConfig(
    temporal_stride=2,
    patch=1,
    channels=(8, 8, 12),
    encoder_blocks=(0, 1, 1),
    decoder_blocks=(1, 0, 1),
    halves_time=(False, False, True),
    quantizer=FSQConfig(levels=(5, 5, 3)),
)
CONFIGS: dict[str, AnyCodecConfig] = {
    "factorised": FACTORISED,
    "factorised at three resolutions": THREE,
    "factorised image": dataclasses.replace(FACTORISED, temporal_stride=1, halves_time=(False, False)),
    "factorised in small blocks": dataclasses.replace(FACTORISED, stream_block=1),
    "transformer": TRANSFORMER,
    "transformer that sees whole pictures": dataclasses.replace(TRANSFORMER, spatial_window=None, temporal_window=3),
    "transformer with odd squares": dataclasses.replace(TRANSFORMER, spatial_window=3, stream_block=1),
    "transformer image": dataclasses.replace(TRANSFORMER, temporal_stride=1, temporal_window=6),
    "transformer without a past": dataclasses.replace(TRANSFORMER, temporal_window=1),
    **LINEAR,
}


@pytest.fixture(scope="module", params=CONFIGS)
def codec(request: pytest.FixtureRequest) -> VideoCodec:
    return smallest_codec(config=CONFIGS[request.param])


@pytest.fixture(scope="module", params=NEW_KINDS)
def first(request: pytest.FixtureRequest) -> VideoCodec:
    return smallest_codec(config=NEW_KINDS[request.param])


def streamed(codec: VideoCodec, frames: Tensor, cuts: list[int]) -> tuple[Tensor, Tensor]:
    """Codes and frames of ``frames``, pushed in pieces of these lengths over and over, and the codes likewise."""
    with codec.stream_encoder(len(frames)) as stream:
        codes = torch.cat([*(stream.push(piece) for piece in cut(frames, cuts)), stream.finish()], dim=2)
    with codec.stream_decoder(len(frames)) as decoder:
        return codes, torch.cat([*(decoder.push(piece) for piece in cut(codes, cuts)), decoder.finish()], dim=2)


def cut(clip: Tensor, lengths: list[int]) -> list[Tensor]:
    rest = [lengths[turn % len(lengths)] for turn in range(clip.shape[2])]
    ends = [min(sum(rest[:turn]), clip.shape[2]) for turn in range(len(rest) + 1)]
    return [clip[:, :, a:b] for a, b in pairwise(ends) if b > a]


def test_lengths_and_exact_frames(codec: VideoCodec) -> None:
    stride = codec.temporal_stride
    for num_frames in range(1, 3 + 2 * stride):
        frames = noise(2, 3, num_frames, 8, SIZE)
        codes = codec.encode(frames)
        t = 1 + -(-(num_frames - 1) // stride)
        assert codes.shape == (2, 1, t, 8 // codec.spatial_stride, SIZE // codec.spatial_stride)
        assert codec.decode(codes).shape == (2, 3, 1 + (t - 1) * stride, 8, SIZE)
        assert codec.decode(codes, num_frames=num_frames).shape == frames.shape == codec(frames).frames.shape
        filled = torch.cat([frames, frames[:, :, -1:].expand(-1, -1, -(num_frames - 1) % stride, -1, -1)], dim=2)
        assert torch.equal(codec.encode_latents(frames), codec.encode_latents(filled))


def test_no_frame_changes_an_earlier_code(codec: VideoCodec) -> None:
    stride, frames = codec.temporal_stride, noise(1, 3, 10, SIZE, SIZE)
    latents = codec.encode_latents(frames)
    for changed in range(1, 10):
        other = frames.clone()
        other[:, :, changed] = noise(1, 3, SIZE, SIZE, seed=1)
        latents_of_other = codec.encode_latents(other)
        t = 1 + (changed - 1) // stride
        assert torch.equal(latents[:, :, :t], latents_of_other[:, :, :t])
        assert not torch.equal(latents[:, :, t], latents_of_other[:, :, t])


def test_no_code_changes_an_earlier_frame(codec: VideoCodec) -> None:
    stride, latents = codec.temporal_stride, noise(1, 3, 6, 2, 3)
    frames = codec.decode_latents(latents)
    for changed in range(6):
        other = latents.clone()
        other[:, :, changed] = noise(1, 3, 2, 3, seed=1)
        frames_of_other = codec.decode_latents(other)
        start, end = max(0, 1 + (changed - 1) * stride), 1 + changed * stride
        assert torch.equal(frames[:, :, :start], frames_of_other[:, :, :start])
        # Each of its own frames, not only the first.
        for frame in range(start, end):
            assert not torch.equal(frames[:, :, frame], frames_of_other[:, :, frame])


def test_the_first_frame_stands_alone(codec: VideoCodec) -> None:
    clip = noise(2, 3, 7, SIZE, SIZE)
    latents, image = codec.encode_latents(clip), codec.encode_latents(clip[:, :, :1])
    assert torch.equal(latents[:, :, :1], image)  # it is a block of its own
    codes = codec.encode(clip)
    assert torch.equal(codec.decode(codes)[:, :, :1], codec.decode(codes[:, :, :1]))
    at_once = codec(clip).frames[:, :, :1]
    torch.testing.assert_close(at_once, codec(clip[:, :, :1]).frames, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cuts", [[1], [3, 7, 1], [5, 2], [38]], ids=str)
def test_streamed_is_whole_to_the_last_bit(codec: VideoCodec, cuts: list[int]) -> None:
    frames = noise(2, 3, 38, 8, SIZE)
    codes = codec.encode(frames)
    codes_of_stream, frames_of_stream = streamed(codec, frames, cuts)
    assert torch.equal(codes_of_stream, codes)
    assert torch.equal(frames_of_stream, codec.decode(codes))


def test_streamed_is_whole_under_autocast_and_in_bf16(first: VideoCodec) -> None:
    frames = noise(1, 3, 30, 8, 8)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        codes = first.encode(frames)
        codes_of_stream, frames_of_stream = streamed(first, frames, [5, 2])
        assert torch.equal(codes_of_stream, codes) and torch.equal(frames_of_stream, first.decode(codes))
    coarse = smallest_codec(config=first.config).bfloat16()
    codes = coarse.encode(frames.bfloat16())
    codes_of_stream, frames_of_stream = streamed(coarse, frames.bfloat16(), [5, 2])
    assert torch.equal(codes_of_stream, codes) and frames_of_stream.dtype == torch.bfloat16
    assert torch.equal(frames_of_stream, coarse.decode(codes))


def test_blocks_are_what_all_frames_at_once_give_up_to_rounding(codec: VideoCodec) -> None:
    frames = noise(1, 3, 34, 8, 8)
    torch.testing.assert_close(codec.encode_latents(frames), codec.encoder(frames), atol=1e-4, rtol=0)
    latents = noise(1, 3, 11, 2, 2)
    torch.testing.assert_close(codec.decode_latents(latents), codec.decoder(latents), atol=1e-4, rtol=0)


def test_without_the_past_the_codes_change(first: VideoCodec) -> None:
    """Else equality would only show that nothing looks back."""
    frames, forgetful = noise(1, 3, 33, SIZE, SIZE), []
    for number, block in enumerate(blocks_of(frames, 16)):
        past = Past()
        past.begun = number > 0
        forgetful.append(first.encode_block(block, past))
    whole = first.encode(frames)
    assert torch.equal(forgetful[0], whole[:, :, :1])
    assert not torch.equal(torch.cat(forgetful, dim=2)[:, :, 1:], whole[:, :, 1:])


@pytest.mark.parametrize("stop", [1, 6, 29])
def test_a_stream_goes_on_from_its_state(first: VideoCodec, stop: int) -> None:
    frames = noise(1, 3, 41, SIZE, SIZE)
    with first.stream_encoder() as stream:
        codes = [stream.push(frames[:, :, :stop])]
        state = stream.state()
    with first.stream_encoder() as stream:
        stream.restore(state)
        codes += [stream.push(frames[:, :, stop:]), stream.finish()]
    assert torch.equal(torch.cat(codes, dim=2), first.encode(frames))
    with smallest_codec().stream_encoder() as other, pytest.raises(CheckpointError, match="another codec"):
        other.restore(state)


def test_what_a_stream_keeps_does_not_grow(first: VideoCodec) -> None:
    sizes = []
    with first.stream_encoder() as stream:
        for _ in range(6):
            stream.push(noise(1, 3, 16, 8, 8))
            sizes.append(sum(tensor.numel() for tensor in stream.state().values()))
    assert sizes[-1] == sizes[-2] == sizes[-3] > 0


def test_it_does_not_matter_how_long_a_stream_has_run(codec: VideoCodec) -> None:
    """What repeats, repeats in the codes: of their position only differences are known. A period is a block."""
    period = codec.temporal_stride * codec.config.stream_block
    once = noise(1, 3, period, 8, 8)
    frames = torch.cat([once[:, :, -1:], *[once] * 12], dim=2)
    latents = codec.encode_latents(frames)[:, :, 1:].unflatten(2, (12, -1))
    assert torch.equal(latents[:, :, 10], latents[:, :, 11])
    again = latents[:, :, 11:].repeat(1, 1, 12, 1, 1, 1).flatten(2, 3)
    decoded = codec.decode_latents(torch.cat([again[:, :, -1:], again], dim=2))
    assert torch.equal(decoded[:, :, -period:], decoded[:, :, -2 * period : -period])


def test_the_transformer_sees_its_window_and_nothing_before() -> None:
    """Two blocks of three latent frames look back four; the decoder's likewise."""
    config = dataclasses.replace(TRANSFORMER, temporal_window=3)
    codec = smallest_codec(config=config)
    reach = config.encoder_blocks * (config.temporal_window - 1)
    frames = noise(1, 3, 1 + 4 * (reach + 3), 8, 8)
    other = frames.clone()
    other[:, :, 0] = noise(1, 3, 8, 8, seed=1)
    same = [torch.equal(*pair) for pair in by_time(codec.encode_latents(frames), codec.encode_latents(other))]
    assert same == [number > reach for number in range(reach + 4)]
    latents = noise(1, 3, reach + 4, 2, 2)
    changed = latents.clone()
    changed[:, :, 0] = noise(1, 3, 2, 2, seed=1)
    same = [torch.equal(*pair) for pair in by_time(codec.decode_latents(latents), codec.decode_latents(changed))]
    assert same == [number > 4 * reach for number in range(1 + 4 * (reach + 3))]


def by_time(one: Tensor, other: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(one.unbind(2), other.unbind(2), strict=True))


def test_the_factorised_codec_sees_what_its_layers_look_back_at() -> None:
    """At steps of 2 and of 4 frames: halving looks back one step, a block two."""
    codec = smallest_codec(config=FACTORISED)
    reach = sum(step * (1 + 2 * blocks) for step, blocks in zip((2, 4), FACTORISED.encoder_blocks, strict=True))
    frames = noise(1, 3, 1 + 4 * 8, 8, 8)
    other = frames.clone()
    other[:, :, 0] = noise(1, 3, 8, 8, seed=1)
    same = [torch.equal(*pair) for pair in by_time(codec.encode_latents(frames), codec.encode_latents(other))]
    assert same == [4 * number > reach for number in range(9)]


@pytest.mark.parametrize("window", [2, 3, None])
def test_squares_of_cells_are_counted_from_the_corner(window: int | None) -> None:
    """Which pixels a latent depends on, against the windows written out; the second block's are moved by half."""
    config = dataclasses.replace(TRANSFORMER, spatial_window=window)
    codec = smallest_codec(config=config)
    shifts = [] if window is None else [window // 2, 0]  # from the last block to the first

    def seen(cell: int, count: int) -> set[int]:
        cells = {cell} if window else set(range(count))
        for shift in shifts:
            squares = {(one + shift) // window for one in cells}  # type: ignore[operator]
            cells = {one for one in range(count) if (one + shift) // window in squares}  # type: ignore[operator]
        return cells

    frames = noise(1, 3, 1, 20, 28).requires_grad_()
    latents = codec.encode_latents(frames)
    for row, column in product(range(5), range(7)):
        (gradient,) = torch.autograd.grad(latents[..., row, column].square().sum(), frames, retain_graph=True)
        cells = gradient.abs().amax(dim=(0, 1, 2)).unflatten(1, (7, 4)).amax(2).unflatten(0, (5, 4)).amax(1) > 0
        expected = torch.zeros(5, 7, dtype=torch.bool)
        expected[[[r] for r in sorted(seen(row, 5))], sorted(seen(column, 7))] = True
        assert torch.equal(cells, expected)


def test_a_larger_picture_around_it_does_not_change_what_is_in_the_corner() -> None:
    codec = smallest_codec(config=TRANSFORMER)
    frames = noise(1, 3, 9, 20, 24)
    whole, corner = codec.encode_latents(frames), codec.encode_latents(frames[..., :16, :16])
    # The last square that is whole in both: cells 0 to 2 of the shifted ones, which see 0 to 3.
    torch.testing.assert_close(whole[..., :3, :3], corner[..., :3, :3], atol=1e-5, rtol=0)
    assert (whole[..., 3, 3] - corner[..., 3, 3]).abs().max() > 1e-3
