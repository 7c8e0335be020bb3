"""The continuous codec: latents instead of codes, and a clear word where somebody asks for codes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.tokenizers.lively import noise, smallest_codec
from tokvid.errors import ModelError
from tokvid_tokenizers import CodecConfig, VideoCodec
from tokvid_tokenizers.evaluation import evaluate_reconstructions, reconstruct
from tokvid_tokenizers.files import encode_file
from tokvid_tokenizers.quantizers import KLConfig, build_quantizer

CONFIG = CodecConfig(
    patch=4, channels=(8,), encoder_blocks=(1,), decoder_blocks=(1,), quantizer=KLConfig(dim=3, weight=0.5)
)


def test_the_divergence_is_that_of_gaussians() -> None:
    bottleneck = build_quantizer({"kind": "kl", "dim": 2, "weight": 0.5})
    mean, deviation = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    encoded = torch.cat([mean, 2 * deviation.log()]).view(1, 4, 1, 1, 1).expand(3, 4, 2, 2, 2)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, deviation), torch.distributions.Normal(0.0, 1.0)
    ).sum()
    output = bottleneck.eval()(encoded)
    assert float(output.loss) == pytest.approx(0.5 * float(expected), rel=1e-5)
    assert torch.equal(output.quantized, bottleneck.latents_of(encoded))
    torch.manual_seed(0)
    many = bottleneck.train()(encoded[:1].expand(4000, -1, -1, -1, -1)).quantized
    torch.testing.assert_close(many.mean((0, 2, 3, 4)), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(many.std((0, 2, 3, 4)), deviation, atol=0.05, rtol=0)


def test_an_extreme_variance_stays_finite() -> None:
    encoded = torch.full((1, 4, 1, 1, 1), 1e4).requires_grad_()
    output = build_quantizer({"kind": "kl", "dim": 2}).train()(encoded)
    (output.loss + output.quantized.sum()).backward()
    assert math.isfinite(output.loss.item()) and encoded.grad is not None and encoded.grad.isfinite().all()


def test_latents_go_there_and_back(tmp_path: Path) -> None:
    codec = smallest_codec(config=CONFIG)
    frames = noise(2, 3, 9, 16, 16)
    latents = codec.encode_latents(frames)
    assert latents.shape == (2, 3, 3, 4, 4)
    assert codec.decode_latents(latents, num_frames=8).shape == (2, 3, 8, 16, 16)
    assert (codec.num_codebooks, codec.codebook_size) == (0, 0)
    codec.save_pretrained(tmp_path / "codec")
    assert torch.equal(VideoCodec.from_pretrained(tmp_path / "codec").encode_latents(frames), latents)
    clips = ((frames.movedim(1, -1) + 1) * 127.5).round().to(torch.uint8).numpy()
    result = evaluate_reconstructions(codec, clips, reconstruct(codec, clips))
    assert result.codebook_usage is None and set(result.figures()) == {"clips", "codes", "psnr"}


def test_who_asks_for_codes_hears_why_there_are_none(tmp_path: Path) -> None:
    codec = smallest_codec(config=CONFIG)
    with pytest.raises(ModelError, match="has no codebook"):
        codec.codebook_vectors()
    with pytest.raises(ModelError, match="has no codes"):
        encode_file(codec, tmp_path / "clip.mp4", tmp_path / "clip.tokvid")
