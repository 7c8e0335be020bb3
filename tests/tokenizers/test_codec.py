"""The codec: lengths and sizes, causality, locality, and what it refuses."""

from __future__ import annotations

import dataclasses
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizers.lively import FACTORISED, TRANSFORMER, lively_preset, noise, settled, smallest_codec
from tokvid.errors import ConfigError, ModelError, ShapeError
from tokvid.grid import Grid, latent_frames
from tokvid_tokenizers import CodecConfig, FactorisedCodecConfig, VideoCodec, list_codecs, load_codec
from tokvid_tokenizers.codec_config import AnyCodecConfig
from tokvid_tokenizers.presets import PRESETS
from tokvid_tokenizers.quantizers import FSQConfig

SIZE = 16


LOCAL = CodecConfig(
    patch=4,
    channels=(8, 12),
    encoder_blocks=(1, 2),
    decoder_blocks=(1, 1),
    local_encoder=True,
    quantizer=FSQConfig(levels=(8, 5, 5)),
)


KEY_FRAMES = dataclasses.replace(LOCAL, local_encoder=False, key_frames=True)
SHIFT: dict[str, AnyCodecConfig] = {"local": LOCAL, "key-frames": KEY_FRAMES}
OTHERS: dict[str, AnyCodecConfig] = {"factorised": FACTORISED, "transformer": TRANSFORMER}
SHIFT_PRESETS = sorted(name for name, config in PRESETS.items() if isinstance(config, CodecConfig))


def named(name: str) -> VideoCodec:
    config = (SHIFT | OTHERS).get(name)
    return smallest_codec(config=config) if config else lively_preset(name)


@pytest.fixture(scope="module", params=[*SHIFT_PRESETS, *SHIFT, *OTHERS])
def codec(request: pytest.FixtureRequest) -> VideoCodec:
    return named(request.param)


@pytest.fixture(scope="module", params=[*SHIFT_PRESETS, *SHIFT, "factorised"])
def convolutional(request: pytest.FixtureRequest) -> VideoCodec:
    return named(request.param)


@pytest.fixture(scope="module", params=[*SHIFT_PRESETS, *SHIFT])
def shifting(request: pytest.FixtureRequest) -> VideoCodec:
    return named(request.param)


def is_local(codec: VideoCodec) -> bool:
    return isinstance(codec.config, CodecConfig) and codec.config.local_encoder


@pytest.fixture(scope="module")
def tiny() -> VideoCodec:
    return lively_preset("tiny")


def strided(temporal_stride: int) -> VideoCodec:
    config = CodecConfig(
        temporal_stride=temporal_stride,
        patch=2,
        channels=(8, 12),
        encoder_blocks=(1, 0),
        decoder_blocks=(0, 1),
        quantizer=FSQConfig(levels=(5, 3)),
    )
    return smallest_codec(config=config)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_lengths_and_sizes(stride: int) -> None:
    codec = strided(stride)
    assert (codec.temporal_stride, codec.spatial_stride, codec.is_causal) == (stride, 4, True)
    for num_frames in range(1, 11):
        codes = codec.encode(noise(2, 3, num_frames, 8, 12))
        t = 1 + -(-(num_frames - 1) // stride)
        assert codes.shape == (2, 1, t, 2, 3) and codes.dtype == torch.int64
        assert codec.grid_for(num_frames, 8, 12) == Grid(t=t, h=2, w=3)
        whole = codec.decode(codes)
        assert whole.shape == (2, 3, 1 + (t - 1) * stride, 8, 12)
        assert whole.abs().max() <= 1
        exact = codec.decode(codes, num_frames=num_frames)
        assert exact.shape == (2, 3, num_frames, 8, 12)
        assert torch.equal(exact, whole[:, :, :num_frames])
        first, last = max(1, 2 + (t - 2) * stride), 1 + (t - 1) * stride
        assert first <= num_frames <= last
        for wrong in (first - 1, last + 1, 0, -1):
            with pytest.raises(ShapeError, match=f"hold {first} to {last} frames, got num_frames={wrong}"):
                codec.decode(codes, num_frames=wrong)


def test_an_incomplete_last_group_is_filled_with_its_last_frame(tiny: VideoCodec) -> None:
    frames = noise(1, 3, 7, SIZE, SIZE)
    filled = torch.cat([frames, frames[:, :, -1:], frames[:, :, -1:]], dim=2)
    assert torch.equal(tiny.encode_latents(frames), tiny.encode_latents(filled))


def test_the_forward_pass_is_encode_and_decode_without_the_clipping(tiny: VideoCodec) -> None:
    frames = noise(1, 3, 7, SIZE, SIZE)
    output = tiny(frames)
    assert torch.equal(output.quantizer.codes, tiny.encode(frames))
    assert output.frames.shape == frames.shape
    # Training runs over all frames at once, everything else in blocks: equal up to the rounding of sums.
    decoded = tiny.decode(output.quantizer.codes, num_frames=7)
    torch.testing.assert_close(output.frames.clamp(-1, 1), decoded, atol=1e-5, rtol=0)


def test_of_some_clips_the_decoder_sees_latents_before_they_are_rounded(tiny: VideoCodec) -> None:
    frames = noise(2, 3, 9, 16, 24)
    plain, mixed = tiny(frames), tiny(frames, torch.tensor([True, False]))
    assert torch.equal(mixed.frames[1], plain.frames[1]) and not torch.equal(mixed.frames[0], plain.frames[0])
    assert torch.equal(mixed.quantizer.codes, plain.quantizer.codes)
    ceiling = tiny.decode_latents(tiny.unrounded_latents(frames), num_frames=9)
    torch.testing.assert_close(mixed.frames[:1], ceiling[:1], atol=1e-5, rtol=1e-5)


def test_an_image_is_the_first_latent_frame_of_a_clip(codec: VideoCodec) -> None:
    """The same mathematics; a kernel may add in another order when the batch is larger, so up to rounding."""
    clip = noise(1, 3, 9, 32, 32)
    image = clip[:, :, :1]
    of_clip, of_image = codec.encode_latents(clip)[:, :, :1], codec.encode_latents(image)
    torch.testing.assert_close(of_image, of_clip, atol=1e-5, rtol=0)
    safe = settled(codec, of_clip)
    assert safe.float().mean() > 0.9
    codes = codec.encode(clip)
    assert torch.equal(codec.encode(image)[safe], codes[:, :, :1][safe])
    torch.testing.assert_close(codec.decode(codes[:, :, :1]), codec.decode(codes)[:, :, :1], atol=1e-5, rtol=0)


@settings(max_examples=10, deadline=None)
@given(changed=st.integers(1, 9), seed=st.integers(1, 99))
def test_a_later_frame_never_changes_an_earlier_code(codec: VideoCodec, changed: int, seed: int) -> None:
    frames = noise(1, 3, 10, SIZE, SIZE)
    other = torch.cat([frames[:, :, :changed], noise(1, 3, 10 - changed, SIZE, SIZE, seed=seed)], dim=2)
    latents, latents_of_other = codec.encode_latents(frames), codec.encode_latents(other)
    t = 1 + (changed - 1) // codec.temporal_stride
    assert torch.equal(latents[:, :, :t], latents_of_other[:, :, :t])
    assert torch.equal(codec.encode(frames)[:, :, :t], codec.encode(other)[:, :, :t])
    assert not torch.equal(latents[:, :, t], latents_of_other[:, :, t])


@settings(max_examples=10, deadline=None)
@given(groups=st.integers(0, 2))
def test_what_follows_a_whole_group_does_not_change_it(codec: VideoCodec, groups: int) -> None:
    frames = noise(1, 3, 2 + 2 * codec.temporal_stride, SIZE, SIZE)
    whole = 1 + groups * codec.temporal_stride
    beginning = codec.encode_latents(frames[:, :, :whole])
    torch.testing.assert_close(codec.encode_latents(frames)[:, :, : 1 + groups], beginning, atol=1e-5, rtol=0)


@settings(max_examples=10, deadline=None)
@given(changed=st.integers(0, 3), seed=st.integers(1, 99))
def test_a_later_code_never_changes_an_earlier_frame(codec: VideoCodec, changed: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes, other = torch.randint(codec.codebook_size, (2, 1, 1, 4, 2, 2), generator=generator)
    other[:, :, :changed] = codes[:, :, :changed]
    latents, latents_of_other = codec.quantizer.dequantize(codes), codec.quantizer.dequantize(other)
    frames, frames_of_other = codec.decode_latents(latents), codec.decode_latents(latents_of_other)
    first = 1 + (changed - 1) * codec.temporal_stride if changed else 0
    assert torch.equal(frames[:, :, :first], frames_of_other[:, :, :first])
    assert torch.equal(codec.decode(codes)[:, :, :first], codec.decode(other)[:, :, :first])
    assert not torch.equal(frames[:, :, first], frames_of_other[:, :, first])


def test_gradients_reach_the_present_and_the_past_only(codec: VideoCodec) -> None:
    stride = codec.temporal_stride
    frames = noise(1, 3, 1 + 3 * stride, SIZE, SIZE).requires_grad_()
    codec.encode_latents(frames)[:, :, 2].square().sum().backward()
    assert frames.grad is not None
    by_frame = frames.grad.abs().amax(dim=(0, 1, 3, 4))
    seen = set(range(1 + stride if is_local(codec) else 0, 1 + 2 * stride))
    if isinstance(codec.config, CodecConfig) and codec.config.key_frames:
        seen &= {0, stride, 2 * stride}
    assert (by_frame > 0).tolist() == [frame in seen for frame in range(1 + 3 * stride)]

    latents = noise(1, codec.quantizer.dim, 4, 2, 2).requires_grad_()
    codec.decode_latents(latents)[:, :, 2 * stride].square().sum().backward()
    assert latents.grad is not None
    by_latent = latents.grad.abs().amax(dim=(0, 1, 3, 4))
    assert (by_latent > 0).tolist() == [True, True, True, False]


def test_a_distant_region_changes_nothing_here(convolutional: VideoCodec) -> None:
    """No statistic runs over space: beyond the reach of the convolutions every value is the same, bit by bit."""
    codec = convolutional
    config, stride, local = codec.config, codec.spatial_stride, is_local(codec)
    assert isinstance(config, CodecConfig | FactorisedCodecConfig)
    cell_sizes = [config.patch * 2**level for level in range(len(config.channels))]
    # A block has two 3x3 convolutions, so it sees two cells of its resolution to each side.
    blocks_seen = (0, 0) if local else config.encoder_blocks
    reach = sum(2 * blocks * size for blocks, size in zip(blocks_seen, cell_sizes, strict=True))
    cells = -(-reach // stride)
    frames = noise(1, 3, 1, stride, (cells + 3) * stride)
    other = frames.clone()
    other[..., -stride:] = noise(1, 3, 1, stride, stride, seed=1)
    latents, latents_of_other = codec.encode_latents(frames), codec.encode_latents(other)
    assert torch.equal(latents[..., :2], latents_of_other[..., :2])
    assert torch.equal(codec.encode(frames)[..., :2], codec.encode(other)[..., :2])
    assert torch.equal(latents[..., -2], latents_of_other[..., -2]) == local
    assert not torch.equal(latents[..., -1], latents_of_other[..., -1])

    reach = stride + sum(2 * blocks * size for blocks, size in zip(config.decoder_blocks, cell_sizes, strict=True))
    latents = noise(1, codec.quantizer.dim, 1, 1, -(-reach // stride) + 3)
    changed = latents.clone()
    changed[..., -1] = noise(1, codec.quantizer.dim, 1, 1, seed=1)
    decoded, decoded_of_changed = codec.decode_latents(latents), codec.decode_latents(changed)
    assert torch.equal(decoded[..., : 2 * stride], decoded_of_changed[..., : 2 * stride])
    assert not torch.equal(decoded[..., -2 * stride : -stride], decoded_of_changed[..., -2 * stride : -stride])


def test_a_distant_past_changes_nothing_now(shifting: VideoCodec) -> None:
    """No statistic runs over time: each block looks back one latent frame."""
    codec, side = shifting, shifting.spatial_stride
    assert isinstance(codec.config, CodecConfig)
    reach = 0 if is_local(codec) else sum(codec.config.encoder_blocks)
    frames = noise(1, 3, 1 + codec.temporal_stride * (reach + 2), side, side)
    other = frames.clone()
    other[:, :, 0] = noise(1, 3, side, side, seed=1)
    latents, latents_of_other = codec.encode_latents(frames), codec.encode_latents(other)
    assert torch.equal(latents[:, :, reach + 1 :], latents_of_other[:, :, reach + 1 :])
    assert torch.equal(latents[:, :, 1], latents_of_other[:, :, 1]) == is_local(codec)


@pytest.mark.parametrize(("patch", "channels", "blocks"), [(4, (8,), (3,)), (2, (8, 12), (1, 2))])
def test_a_local_code_sees_its_own_block_of_pixels_alone(
    patch: int, channels: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    """Blocks are 4 frames of 4x4 pixels, the first of one frame: whichever is changed, only its own code changes."""
    config = dataclasses.replace(LOCAL, patch=patch, channels=channels, encoder_blocks=blocks, decoder_blocks=blocks)
    codec = smallest_codec(config=config)
    frames, noisy = noise(1, 3, 9, 12, 12), noise(1, 3, 9, 12, 12, seed=1)
    latents, codes = codec.encode_latents(frames), codec.encode(frames)
    grid = codec.grid_for(9, 12, 12)
    assert grid == Grid(t=3, h=3, w=3)
    changed_codes = 0
    for cell in product(range(3), range(3), range(3)):
        t, h, w = cell
        block = (..., slice(max(0, 4 * t - 3), 4 * t + 1), slice(4 * h, 4 * h + 4), slice(4 * w, 4 * w + 4))
        other = frames.clone()
        other[block] = noisy[block]
        here = torch.zeros(3, 3, 3, dtype=torch.bool)
        here[cell] = True
        latents_of_other, codes_of_other = codec.encode_latents(other), codec.encode(other)
        assert torch.equal(latents[..., ~here], latents_of_other[..., ~here])
        assert torch.equal(codes[..., ~here], codes_of_other[..., ~here])
        assert not torch.equal(latents[..., here], latents_of_other[..., here])
        changed_codes += int((codes != codes_of_other).sum())
    assert changed_codes > 13  # of 27: noise may have the code it had


def test_what_stands_still_keeps_its_local_codes() -> None:
    still = noise(1, 3, 1, SIZE, SIZE).expand(-1, -1, 9, -1, -1)
    codes = smallest_codec(config=LOCAL).encode(still)
    assert torch.equal(codes, codes[:, :, :1].expand_as(codes)) and len(codes.unique()) > 1
    around = smallest_codec(config=dataclasses.replace(LOCAL, local_encoder=False)).encode(still)
    assert not torch.equal(around, around[:, :, :1].expand_as(around))


@pytest.mark.parametrize("num_frames", [1, 2, 5, 7, 9])
def test_key_frames_are_the_last_of_their_block_and_the_others_change_no_code(num_frames: int) -> None:
    codec = smallest_codec(config=KEY_FRAMES)
    frames, other = noise(1, 3, num_frames, SIZE, SIZE), noise(1, 3, num_frames, SIZE, SIZE, seed=1)
    keys = sorted({*range(0, num_frames, 4), num_frames - 1})
    other[:, :, keys] = frames[:, :, keys]
    assert torch.equal(codec.encode_latents(frames), codec.encode_latents(other))
    assert (
        codec.encode(frames).shape[2] == len(keys)
        and codec.decode(codec.encode(frames), num_frames).shape[2] == num_frames
    )
    for key in keys:
        changed = frames.clone()
        changed[:, :, key] = noise(1, 3, SIZE, SIZE, seed=2)
        assert not torch.equal(codec.encode_latents(frames), codec.encode_latents(changed))


def test_one_clip_of_a_batch_knows_nothing_of_the_others(tiny: VideoCodec) -> None:
    frames = noise(3, 3, 6, SIZE, SIZE)
    other = frames.clone()
    other[1:] = noise(2, 3, 6, SIZE, SIZE, seed=1)
    assert torch.equal(tiny.encode_latents(frames)[0], tiny.encode_latents(other)[0])


FRAMES = noise(1, 3, 5, SIZE, SIZE)


@pytest.mark.parametrize(("num_frames", "height", "width"), [(5, 12, 16), (5, 16, 0), (5, -8, 16), (0, 16, 16)])
def test_a_size_without_a_grid_is_refused(tiny: VideoCodec, num_frames: int, height: int, width: int) -> None:
    with pytest.raises((ModelError, ShapeError), match=r"multiples of 8, got|at least one frame, got 0"):
        tiny.grid_for(num_frames, height, width)


def test_a_codec_in_bf16_reads_and_writes_bf16() -> None:
    codec = lively_preset("tiny").bfloat16()
    codes = codec.encode(FRAMES.bfloat16())
    frames = codec.decode(codes, num_frames=5)
    assert frames.dtype == torch.bfloat16 and frames.shape == FRAMES.shape
    with pytest.raises(ShapeError, match=r"torch.float32.*torch.bfloat16"):
        codec.encode(FRAMES)
    assert codec.codebook_vectors().dtype == torch.float32
    assert torch.equal(codec.codebook_vectors(), load_codec("preset:tiny").codebook_vectors())


def test_bf16_autocast_takes_float_and_bf16_frames(tiny: VideoCodec) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        for frames in (FRAMES, FRAMES.bfloat16()):
            output = tiny(frames)
            assert output.quantizer.quantized.dtype == torch.float32
            assert torch.isfinite(output.frames).all()


def test_calibration_spreads_the_latents() -> None:
    codec = load_codec("preset:tiny")
    frames = noise(4, 3, 5, 32, 32)
    assert codec.encode_latents(frames).std(dim=(0, 2, 3, 4)).max() < 0.9
    codec.calibrate(frames)
    latents = codec.encode_latents(frames)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3, 4)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3, 4)), torch.ones(4), atol=1e-3, rtol=0)
    with pytest.raises(ShapeError, match="two positions"):
        codec.calibrate(frames[:1, :, :1, :8, :8])
    assert all(torch.isfinite(p).all() for p in codec.parameters())


def test_presets_are_seeded() -> None:
    names = ["base", "quality", "transformer", "compact", "long", "image", "small", "tiny"]
    assert list(list_codecs()) == [*(f"preset:{name}" for name in names), "vidtok:PATH-OR-REPO"]
    before = torch.random.get_rng_state()
    assert load_codec("preset:tiny").codec_id == load_codec("preset:tiny", seed=0).codec_id
    assert load_codec("preset:tiny").codec_id != load_codec("preset:tiny", seed=1).codec_id
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(ModelError, match="did you mean 'tiny'"):
        load_codec("preset:tinny")


def test_the_base_preset() -> None:
    codec = load_codec("preset:base")
    assert (codec.temporal_stride, codec.spatial_stride) == (4, 8)
    assert (codec.codebook_size, codec.num_codebooks) == (64000, 1)
    assert codec.codebook_vectors().shape == (64000, 6)
    assert latent_frames(17, 4) == 5 and codec.grid_for(17, 128, 128) == Grid(t=5, h=16, w=16)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temporal_stride": 0}, "strides must be positive"),
        ({"patch": -1}, "strides must be positive"),
        ({"channels": ()}, "8 or more"),
        ({"channels": (4, 8)}, "8 or more"),
        ({"channels": (16,)}, "one entry a resolution"),
        ({"encoder_blocks": (1, -1)}, "must not be negative"),
        ({"format_version": 2}, "reads codec format 1, got 2"),
    ],
)
def test_an_impossible_configuration_is_refused(changes: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CodecConfig(**changes)  # type: ignore[arg-type]
