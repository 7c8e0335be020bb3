"""The layers of the factorised and the transformer codec against what they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.tokenizers.lively import ALL_KINDS, TRANSFORMER, enliven, noise, smallest_codec
from tokvid_tokenizers import VideoCodec
from tokvid_tokenizers.layers.attention import TransformerBlock, rotate
from tokvid_tokenizers.layers.residual import ResidualBlock
from tokvid_tokenizers.layers.stack import BlockStack
from tokvid_tokenizers.layers.temporal import TemporalConv, TemporalDownsample, TemporalUpsample


def test_products_of_turned_vectors_know_the_difference_of_their_places_alone() -> None:
    one, other = noise(2, 1, 16), noise(2, 1, 16, seed=1)

    def product_at(*places: int) -> Tensor:
        rows, columns, rows_of_other, columns_of_other = (torch.tensor([place]) for place in places)
        return (rotate(one, rows, columns) * rotate(other, rows_of_other, columns_of_other)).sum(-1)

    torch.testing.assert_close(product_at(3, 5, 1, 9), product_at(9, 2, 7, 6), atol=1e-5, rtol=0)
    for moved in ((3, 5, 2, 9), (3, 5, 1, 8), (5, 3, 9, 1)):
        assert (product_at(3, 5, 1, 9) - product_at(*moved)).abs().max() > 1e-3
    assert torch.equal(rotate(one, torch.tensor([0])), one)


def test_temporal_layers_are_the_convolutions_they_stand_for() -> None:
    """Against conv1d over the frames of each position, the first repeated before the clip."""
    features = noise(2 * 5, 8, 2, 3)
    conv = TemporalConv(8)
    kernel = conv.project.weight.squeeze(-1)
    clips = features.unflatten(0, (2, 5)).permute(0, 3, 4, 2, 1).reshape(-1, 8, 5)
    expected = nn.functional.conv1d(nn.functional.pad(clips, (2, 0), mode="replicate"), kernel, conv.project.bias)
    got = conv(features, 5).unflatten(0, (2, 5)).permute(0, 3, 4, 2, 1).reshape(-1, 8, 5)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)

    halve = TemporalDownsample(8)
    kernel = halve.project.weight.squeeze(-1)
    padded = nn.functional.pad(clips, (2, 0), mode="replicate")
    expected = nn.functional.conv1d(padded, kernel, halve.project.bias, stride=2)
    got = halve(features, 5, begins=True)
    assert got.shape == (2 * 3, 8, 2, 3)
    torch.testing.assert_close(got.unflatten(0, (2, 3)).permute(0, 3, 4, 2, 1).reshape(-1, 8, 3), expected)
    more = TemporalUpsample(8)
    begun, going = more(features, 5, begins=True), more(features, 5, begins=False)
    assert begun.shape == (2 * 9, 8, 2, 3) and going.shape == (2 * 10, 8, 2, 3)
    assert torch.equal(begun.unflatten(0, (2, 9)), going.unflatten(0, (2, 10))[:, 1:])


def test_every_block_starts_as_nothing() -> None:
    """So that a deep codec begins as its stem and head."""
    for config in ALL_KINDS.values():
        codec = VideoCodec(config)
        for module in codec.modules():
            if isinstance(module, BlockStack):
                channels = next(m.normalized_shape[0] for m in module.modules() if isinstance(m, nn.LayerNorm))
                is_last = isinstance(module.blocks[0], TransformerBlock)
                features = noise(3, 2, 2, channels) if is_last else noise(3, channels, 2, 2)
                assert torch.equal(module(features, 3), features)


def test_enlivening_reaches_every_block() -> None:
    """Else the tests of causality would see branches that add nothing."""
    for config in ALL_KINDS.values():
        codec = enliven(VideoCodec(config))
        assert all(p.any() for name, p in codec.named_parameters() if name.endswith("weight"))
        assert any(isinstance(m, BlockStack) for m in codec.modules())
    assert isinstance(smallest_codec().encoder.blocks[0].blocks[0], ResidualBlock)


def test_more_sequences_than_a_kernel_takes_are_attended_to_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, frames = smallest_codec(config=TRANSFORMER), noise(2, 3, 9, 12, 20)
    whole, decoded = codec(frames).frames, codec.decode(codec.encode(frames))
    calls = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def counted(queries: Tensor, *others: Tensor, **settings: Tensor | None) -> Tensor:
        calls.append(len(queries))
        return attention(queries, *others, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("tokvid_tokenizers.layers.attention.MOST_SEQUENCES", 7)
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", counted)
    torch.testing.assert_close(codec(frames).frames, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(codec.decode(codec.encode(frames)), decoded, atol=1e-5, rtol=0)
    assert max(calls) == 7 and len(calls) > 20
