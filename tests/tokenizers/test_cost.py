"""The counted cost is the cost: checked against a real run and against the convolutions written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.tokenizers.lively import FACTORISED, SMALLEST, TRANSFORMER, noise, smallest_codec
from tokvid.errors import ModelError, ShapeError
from tokvid.grid import Grid
from tokvid_tokenizers import CodecConfig, FactorisedCodecConfig, TransformerCodecConfig, VideoCodec
from tokvid_tokenizers.cost import codec_cost
from tokvid_tokenizers.presets import PRESETS, preset


def test_the_base_preset_is_at_most_half_of_the_cheapest_published_codec() -> None:
    cost = codec_cost(preset("base"), 17, 128, 128)
    assert cost.grid == Grid(t=5, h=16, w=16) and cost.num_codes == 1280
    assert 10e9 < cost.macs <= 34e9


CONFIGS = {"small": preset("small"), "tiny": preset("tiny"), "factorised": FACTORISED, "transformer": TRANSFORMER}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_frames", [6, 71])
def test_it_is_what_a_real_run_counts(name: str, num_frames: int) -> None:
    codec, counter = VideoCodec(CONFIGS[name]), FlopCounterMode(display=False)
    cost = codec_cost(codec.config, num_frames, 16, 24)
    with counter, sdpa_kernel(SDPBackend.MATH):
        codes = codec.encode(noise(1, 3, num_frames, 16, 24))
    assert counter.get_total_flops() == 2 * cost.encode_macs
    assert codes.numel() == cost.num_codes
    with counter, sdpa_kernel(SDPBackend.MATH):
        codec.decode(codes, num_frames=num_frames)
    assert counter.get_total_flops() == 2 * cost.decode_macs
    assert cost.parameters == sum(parameter.numel() for parameter in codec.parameters())


def test_it_is_what_the_layers_come_to() -> None:
    """8 channels at patch 4, one block each way, 3 latent channels: 2x2 cells in 2 latent frames."""
    cost, cells = codec_cost(SMALLEST, 5, 8, 8), 8
    patch, block = 3 * 4 * 4 * 4 * 8, 2 * 9 * 8 * 8
    assert cost.encode_macs == cells * (patch + block + 8 * 3)
    assert cost.decode_macs == cells * (9 * 3 * 8 + block + patch)
    assert cost.encoder_parameters == sum(p.numel() for p in smallest_codec().encoder.parameters())
    assert cost.quantizer_parameters == 0


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_it_grows_with_the_clip(name: str) -> None:
    config = preset(name)
    one, four = codec_cost(config, 1, 64, 64), codec_cost(config, 1, 128, 128)
    clip = codec_cost(config, 17, 64, 64)
    match config:
        case CodecConfig():
            assert four.macs == 4 * one.macs
            assert clip.macs == clip.grid.t * one.macs
        case FactorisedCodecConfig():
            # Its finer levels have more frames than there are latent frames.
            assert four.macs == 4 * one.macs
            assert clip.grid.t * one.macs < clip.macs < 17 * one.macs
        case TransformerCodecConfig():
            # The moved squares that the picture cuts cost what whole ones cost; later frames have more to look back at.
            assert 3.9 * one.macs < four.macs <= 4 * one.macs
            assert clip.grid.t * one.macs < clip.macs < 1.01 * clip.grid.t * one.macs


@pytest.mark.parametrize("name", CONFIGS)
def test_it_grows_evenly_with_the_length(name: str) -> None:
    """Nothing looks back at more than a bounded time."""
    costs = [codec_cost(CONFIGS[name], 1 + 16 * count, 32, 32).macs for count in (40, 41, 80, 81)]
    assert costs[1] - costs[0] == costs[3] - costs[2] > 0


def test_no_memory_is_needed() -> None:
    """An hour of video in a size that no machine could hold."""
    assert codec_cost(preset("tiny"), 100_001, 8192, 8192).macs > 1e15
    assert torch.get_default_device().type == "cpu"


def test_a_size_without_a_grid_is_refused() -> None:
    with pytest.raises(ModelError, match="multiples of 8, got 130x128"):
        codec_cost(preset("base"), 17, 130, 128)
    with pytest.raises(ShapeError, match="at least one frame, got 0"):
        codec_cost(preset("base"), 0, 128, 128)
