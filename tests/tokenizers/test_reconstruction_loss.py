"""The pixel loss: its arithmetic, and weights that make no loss."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tokenizers.lively import noise
from tokvid.errors import ConfigError
from tokvid.metrics.perceptual import efflite_distance, video_distance
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
