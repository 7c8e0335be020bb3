"""How different two pictures look: distances between features of a network that has learned to see.

``efflite_distance`` is ours, on EfficientNet-Lite0; it follows the way of LPIPS (Zhang et al. 2018, arXiv 1801.03924)
with equal weights, and its numbers are not LPIPS. LPIPS itself needs weights that no package holds: :class:`LPIPS`
takes them from the user, and only then something is called so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tokvid.errors import CheckpointError, ShapeError
from tokvid.metrics.efficientnet_lite import load_efficientnet_lite

PictureDistance = Callable[[Tensor, Tensor], Tensor]
"""Two batches of pictures ``[N,3,H,W]`` in [-1, 1] to a distance each, ``[N]``; differentiable."""

_EPSILON = 1e-8
# LPIPS's own scaling of pictures in [-1, 1], and the layers of VGG-16 after which it compares.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_VGG_LAYERS = (3, 8, 15, 22, 29)


def efflite_distance(pictures: Tensor, others: Tensor) -> Tensor:
    """The distance ``[N]`` of pictures ``[N,3,H,W]`` in [-1, 1]: 0 for equal ones, about 1 for unrelated ones.

    Features of five resolutions, each position scaled to length 1; squared differences summed over channels, averaged
    over positions, then over resolutions.
    """
    _check(pictures, others)
    network = load_efficientnet_lite().to(pictures.device)
    return _mean_distance(network(pictures), network(others), None)


class LPIPS(nn.Module):
    """LPIPS on VGG-16 (version 0.1) with the user's weights.

    ``vgg`` is torchvision's state dict of VGG-16, ``linear`` that of LPIPS's linear layers (``lin0.model.1.weight``,
    ...), both as ``.pth`` read with torch's restricted reader, or safetensors.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vgg: str | Path, linear: str | Path) -> None:
        super().__init__()
        from torchvision.models import vgg16  # type: ignore[import-untyped]

        network = vgg16(weights=None)
        state, weights = _read(vgg), _read(linear)
        try:
            network.load_state_dict(state)
            self.linear = [weights[f"lin{i}.model.1.weight"].float() for i in range(len(_VGG_LAYERS))]
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"{vgg} and {linear} are not the weights of LPIPS on VGG-16 ({error})") from error
        self.features = network.features[: _VGG_LAYERS[-1] + 1]
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def distance(self, pictures: Tensor, others: Tensor) -> Tensor:
        """The distance ``[N]`` of pictures ``[N,3,H,W]`` in [-1, 1]."""
        _check(pictures, others)
        weights = [weight.to(pictures.device) for weight in self.linear]
        return _mean_distance(self._stages(pictures), self._stages(others), weights) * len(weights)

    def _stages(self, pictures: Tensor) -> list[Tensor]:
        features, stages = (pictures - self.shift) / self.scale, []
        for number, layer in enumerate(self.features):
            features = layer(features)
            if number in _VGG_LAYERS:
                stages.append(features)
        return stages


def video_distance(distance: PictureDistance, frames: Tensor, others: Tensor, chunk: int = 64) -> Tensor:
    """The mean ``distance`` of the frames of two batches of clips ``[B,3,T,H,W]``: ``[B]``."""
    batch, _, count = frames.shape[:3]
    pairs = zip(_pictures(frames).split(chunk), _pictures(others).split(chunk), strict=True)
    return torch.cat([distance(*pair) for pair in pairs]).view(batch, count).mean(1)


def _pictures(frames: Tensor) -> Tensor:
    return frames.transpose(1, 2).flatten(0, 1)


def _mean_distance(features: list[Tensor], others: list[Tensor], weights: list[Tensor] | None) -> Tensor:
    parts = []
    for number, (one, other) in enumerate(zip(features, others, strict=True)):
        difference = (_unit(one) - _unit(other)).square()
        if weights is not None:
            difference = difference * weights[number]
        parts.append(difference.sum(1).mean((1, 2)))
    return torch.stack(parts).mean(0)


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True) + _EPSILON).sqrt()


def _read(path: str | Path) -> dict[str, Tensor]:
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except Exception as error:  # torch and safetensors raise a dozen kinds
        raise CheckpointError(f"{path} cannot be read as weights ({' '.join(str(error).split())[:200]})") from error


def _check(pictures: Tensor, others: Tensor) -> None:
    if pictures.shape != others.shape or pictures.ndim != 4 or pictures.shape[1] != 3:
        raise ShapeError(
            f"expected two batches [N,3,H,W] of one size, got {list(pictures.shape)}, {list(others.shape)}"
        )
