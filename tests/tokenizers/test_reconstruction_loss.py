"""The pixel loss: its arithmetic, and weights that make no loss."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tokenizers.lively import noise
from tokvid.errors import ConfigError
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
