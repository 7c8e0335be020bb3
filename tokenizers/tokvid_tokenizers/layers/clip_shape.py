"""Feature maps of clips with time folded into the batch.

Inside the networks a clip's features are ``[B*t, C, h, w]`` in channels-last memory: spatial convolutions then run
as plain 2-D convolutions, which is 2 to 4 times faster on a CPU than the same arithmetic as conv3d.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fold_time(features: Tensor) -> Tensor:
    """``[B,C,t,h,w]`` -> ``[B*t,C,h,w]`` in channels-last memory."""
    batch, channels, t, height, width = features.shape
    folded = features.permute(0, 2, 1, 3, 4).reshape(batch * t, channels, height, width)
    return folded.contiguous(memory_format=torch.channels_last)


def unfold_time(features: Tensor, t: int) -> Tensor:
    """``[B*t,C,h,w]`` -> ``[B,C,t,h,w]``; the inverse of :func:`fold_time`."""
    unfolded: Tensor = features.unflatten(0, (-1, t))
    return unfolded.permute(0, 2, 1, 3, 4)
