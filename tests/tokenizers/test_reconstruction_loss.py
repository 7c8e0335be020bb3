"""The pixel loss: its arithmetic, and weights that make no loss."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.tokenizers.lively import noise
from tokvid.errors import ConfigError
from tokvid.metrics.perceptual import LPIPS, efflite_distance, video_distance
from tokvid_tokenizers.losses.reconstruction import ReconstructionLossConfig, reconstruction_loss


def test_the_parts_are_weighted_means() -> None:
    frames, reconstruction = noise(2, 3, 5, 8, 8), noise(2, 3, 5, 8, 8, seed=1)
    parts = reconstruction_loss(ReconstructionLossConfig(l2=2.0, l1=0.5), reconstruction, frames)
    torch.testing.assert_close(parts["l2"], 2 * torch.nn.functional.mse_loss(reconstruction, frames))
    torch.testing.assert_close(parts["l1"], 0.5 * torch.nn.functional.l1_loss(reconstruction, frames))
    assert set(reconstruction_loss(ReconstructionLossConfig(), reconstruction, frames)) == {"l2"}


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["l1", "l2"])
def test_weights_that_make_no_loss_are_refused(name: str, wrong: float) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must "):
        ReconstructionLossConfig(**{name: wrong})


def test_both_weights_zero_are_refused() -> None:
    with pytest.raises(ConfigError, match="not all be zero"):
        ReconstructionLossConfig(l2=0.0, l1=0.0)


@pytest.mark.slow
def test_with_the_users_weights_it_is_lpips(tmp_path: Path) -> None:
    from torchvision.models import vgg16

    torch.manual_seed(0)
    names = (str(tmp_path / "vgg.safetensors"), str(tmp_path / "linear.safetensors"))
    save_file(vgg16(weights=None).state_dict(), names[0])
    widths = (64, 128, 256, 512, 512)
    save_file({f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(widths)}, names[1])
    config = ReconstructionLossConfig(l2=0.0, perceptual=0.3, perceptual_frames=0, lpips=names)
    frames = noise(1, 3, 2, 32, 32)
    reconstruction = (frames * 0.5).requires_grad_()
    parts = reconstruction_loss(config, reconstruction, frames)
    expected = 0.3 * video_distance(LPIPS(*names).distance, reconstruction, frames).mean()
    torch.testing.assert_close(parts["perceptual"], expected)
    parts["perceptual"].backward()
    assert reconstruction.grad is not None and reconstruction.grad.any()
    with pytest.raises(ConfigError, match="lpips names weights that nobody uses"):
        ReconstructionLossConfig(lpips=names)


def test_the_perceptual_part_is_the_distance_of_frames() -> None:
    frames = noise(2, 3, 3, 32, 32)
    reconstruction = (frames * 0.5).requires_grad_()
    every = ReconstructionLossConfig(l2=0.0, perceptual=0.3, perceptual_frames=0)
    parts = reconstruction_loss(every, reconstruction, frames)
    expected = 0.3 * video_distance(efflite_distance, reconstruction, frames).mean()
    assert set(parts) == {"perceptual"}
    torch.testing.assert_close(parts["perceptual"], expected)
    parts["perceptual"].backward()
    assert reconstruction.grad is not None
    assert (reconstruction.grad.abs().amax((0, 1, 3, 4)) > 0).all()
    some = ReconstructionLossConfig(l2=0.0, perceptual=0.3, perceptual_frames=1)
    reconstruction.grad = None
    torch.manual_seed(0)
    reconstruction_loss(some, reconstruction, frames)["perceptual"].backward()
    assert (reconstruction.grad.abs().amax((0, 1, 3, 4)) > 0).sum() == 1
