"""A Fréchet distance between the ways in which two sets of clips look and move.

``efflite_frechet`` is ours and its numbers are not FVD: Gaussians are fitted (Heusel et al. 2017, arXiv 1706.08500) to
features of EfficientNet-Lite0 that were differenced in time before they were pooled. Features pooled first are blind
to time: a frozen clip then is as near as a real one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokvid.errors import ShapeError
from tokvid.metrics.efficientnet_lite import load_efficientnet_lite

_STAGES = 3
_ROUNDING = 1e-4  # those of a sprite that moves reach 3 and more
_COMPONENTS = 64
MIN_FRAMES = 3
Features = npt.NDArray[np.float64]


@torch.no_grad()
def motion_features(frames: Tensor, chunk: int = 64) -> Features:
    """Clips ``[B,3,T,H,W]`` in [-1, 1] of at least three frames to ``[B,160]``.

    Of the three finest resolutions, the mean size of the first and of the second difference of every channel in time.
    """
    batch, _, count = frames.shape[:3]
    if count < MIN_FRAMES:
        raise ShapeError(f"a Fréchet distance of motion needs clips of {MIN_FRAMES} frames or more, got {count}")
    network = load_efficientnet_lite().to(frames.device)
    pictures = frames.transpose(1, 2).flatten(0, 1)
    pooled: list[list[Tensor]] = [[] for _ in range(2 * _STAGES)]
    per_chunk = max(1, chunk // count) * count  # whole clips
    for part in pictures.split(per_chunk):
        for stage, features in enumerate(network(part)[:_STAGES]):
            change = features.unflatten(0, (-1, count)).diff(dim=1)
            pooled[2 * stage].append(change.abs().mean((1, 3, 4)))
            pooled[2 * stage + 1].append(change.diff(dim=1).abs().mean((1, 3, 4)))
    joined = torch.cat([torch.cat(parts) for parts in pooled], dim=1)
    assert len(joined) == batch
    return joined.double().cpu().numpy()


def is_still(features: Features) -> bool:
    """Whether nothing moves in the clips of :func:`motion_features` ``[N,160]``, but for rounding."""
    return float(np.abs(features).max()) < _ROUNDING


def efflite_frechet(reference: Features, others: Features) -> float:
    """The Fréchet distance of two sets of :func:`motion_features` ``[N,160]`` and ``[M,160]``, of two clips or more
    each.

    Both are projected to the first 64 principal components of ``reference``; the distance is a percentage of its
    variance there, which it must have. It falls with the number of clips: compare figures of the same number only.
    """
    if min(len(reference), len(others)) < 2:
        raise ShapeError(f"a Fréchet distance needs two clips or more of each, got {len(reference)} and {len(others)}")
    if is_still(reference):
        raise ShapeError("a Fréchet distance of motion needs clips in which something moves")
    centre = reference.mean(0)
    _, sizes, axes = np.linalg.svd(reference - centre, full_matrices=False)
    axes = axes[: min(_COMPONENTS, int((sizes > 1e-9 * sizes[0]).sum()))]
    one, other = (reference - centre) @ axes.T, (others - centre) @ axes.T
    return frechet_distance(one, other) / float(np.var(one, axis=0).sum()) * 100


def frechet_distance(one: Features, other: Features) -> float:
    """Of Gaussians fitted to ``[N,d]`` and ``[M,d]``: ``|m1-m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``."""
    difference = one.mean(0) - other.mean(0)
    first, second = (np.atleast_2d(np.cov(part, rowvar=False)) for part in (one, other))
    root = _square_root(first)
    middle = np.linalg.eigvalsh(root @ second @ root)  # the eigenvalues of C1 C2
    trace = np.trace(first) + np.trace(second) - 2 * np.sqrt(middle.clip(0)).sum()
    return float(difference @ difference + trace)


def _square_root(symmetric: Features) -> Features:
    values, vectors = np.linalg.eigh(symmetric)
    root: Features = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root
