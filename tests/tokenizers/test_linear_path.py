"""The linear path: calibration makes the codec the best linear one, and its networks begin by adding nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.tokenizers.lively import ALL_KINDS, LINEAR, SMALLEST, noise
from tokvid_tokenizers import VideoCodec, load_codec
from tokvid_tokenizers.codec_config import AnyCodecConfig
from tokvid_tokenizers.layers.resample import cut_blocks
from tokvid_tokenizers.quantizers import FSQConfig, KLConfig, QuantizerConfig, VQConfig
from tokvid_tokenizers.quantizers.base import to_vectors

FRAMES = noise(2, 3, 9, 24, 24).cumsum(2).div(3).clamp(-1, 1)
BLOCKS = cut_blocks(FRAMES, 4, 4).flatten(0, 2).double()


def calibrated(config: AnyCodecConfig, frames: Tensor = FRAMES, **changes: QuantizerConfig) -> VideoCodec:
    torch.manual_seed(0)
    codec = VideoCodec(replace(config, **changes)).train()  # type: ignore[arg-type]
    codec.calibrate(frames)
    return codec.eval()


def squared_error(codec: VideoCodec, latents: Tensor) -> float:
    """Of the whole blocks that latents ``[B,D,t,h,w]`` become, the first too, of which one frame is kept."""
    assert codec.decoder.linear is not None
    made = codec.decoder.linear.head.project(to_vectors(latents)).detach()
    return float((made - BLOCKS).square().sum())


@pytest.mark.parametrize("kind", LINEAR)
def test_a_continuous_codec_starts_on_the_principal_components(kind: str) -> None:
    codec = calibrated(LINEAR[kind], quantizer=KLConfig(dim=5))
    latents = codec.encode_latents(FRAMES)
    covariance = torch.cov(latents.transpose(0, 1).flatten(1), correction=0)
    torch.testing.assert_close(covariance, torch.eye(5), atol=1e-3, rtol=0)
    # Eckart and Young: what five dimensions cannot hold is the energy of the other singular values.
    least = float(torch.linalg.svdvals(BLOCKS - BLOCKS.mean(0))[5:].square().sum())
    assert squared_error(codec, latents) == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize("quantizer", [FSQConfig(levels=(8, 8, 8)), VQConfig(codebook_size=16, dim=3)])
def test_the_way_back_is_the_best_from_what_the_quantizer_gives(quantizer: QuantizerConfig) -> None:
    codec = calibrated(replace(SMALLEST, linear_path=True), quantizer=quantizer)
    codes = codec.encode(FRAMES)
    assert len(codes.unique()) > 4
    quantized = codec.quantizer.dequantize(codes)
    best = squared_error(codec, quantized)
    path = codec.decoder.linear
    assert path is not None
    for seed in range(8):
        step = 1e-2 * noise(*path.head.project.weight.shape, seed=seed)
        path.head.project.weight.data += step
        assert squared_error(codec, quantized) > best
        path.head.project.weight.data -= step


@pytest.mark.parametrize("kind", LINEAR)
def test_networks_begin_at_nothing_and_learn(kind: str) -> None:
    codec = calibrated(LINEAR[kind]).train()
    for network, head in ((codec.encoder, codec.encoder.head), (codec.decoder, codec.decoder.head.project)):
        assert not head.weight.any() and head.bias is not None and not head.bias.any()
        assert network.linear is not None
    codec(FRAMES).frames.square().mean().backward()
    for head in (codec.encoder.head, codec.decoder.head.project):
        assert head.weight.grad is not None and head.weight.grad.any()


def test_an_encoder_of_key_frames_starts_on_what_it_sees() -> None:
    codec = calibrated(replace(SMALLEST, linear_path=True, key_frames=True), quantizer=KLConfig(dim=4))
    moved = FRAMES.clone()
    moved[:, :, [1, 2, 3, 5, 6, 7]] = 0
    latents = codec.encode_latents(FRAMES)
    assert torch.equal(codec.encode_latents(moved), latents)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3, 4)), torch.ones(4), atol=1e-2, rtol=0)
    # Stills are all in their key frames: what is drawn between comes from them too.
    still = FRAMES[:, :, :1].expand(-1, -1, 9, -1, -1)
    codec = calibrated(replace(SMALLEST, linear_path=True, key_frames=True), still, quantizer=KLConfig(dim=48))
    torch.testing.assert_close(codec.decode_latents(codec.encode_latents(still)), still, atol=1e-3, rtol=0)


def test_more_channels_than_pixels_and_pictures_of_one_colour() -> None:
    image = replace(SMALLEST, linear_path=True, temporal_stride=1)
    codec = calibrated(image, quantizer=KLConfig(dim=60))
    torch.testing.assert_close(codec.decode_latents(codec.encode_latents(FRAMES)), FRAMES, atol=1e-3, rtol=0)
    grey = torch.full_like(FRAMES, 0.25)
    for quantizer in (KLConfig(dim=60), FSQConfig(levels=(5, 5, 3))):
        codec = calibrated(image, grey, quantizer=quantizer)
        torch.testing.assert_close(codec(grey).frames, grey, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_codecs_without_it_are_what_they_were(kind: str) -> None:
    torch.manual_seed(0)
    codec = VideoCodec(ALL_KINDS[kind])
    assert codec.encoder.linear is None and codec.decoder.linear is None
    assert not any("linear" in name for name in codec.state_dict())


def test_the_base_preset_has_one() -> None:
    assert load_codec("preset:base").config.linear_path
