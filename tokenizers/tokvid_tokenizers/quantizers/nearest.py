"""Finding the nearest row of a codebook without ever holding all distances.

vector-quantize-pytorch materialises the whole table of distances and one-hot assignments (2 GB for 10,240 vectors and
8,192 rows); here the table is made a strip at a time and only its winners are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STRIP_NUMBERS = 1 << 22
"""Distances held at once; 16 MB in float32, which stays near the processor's cache."""


@torch.no_grad()
def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The row of ``codebook`` ``[C,d]`` nearest to each of ``vectors`` ``[N,d]`` by Euclidean distance: int64 ``[N]``.

    Of ``|v - c|^2`` the part ``|v|^2`` is the same for every row, so what is compared is ``v.c - |c|^2 / 2``.
    """
    bias = codebook.square().sum(1) / -2
    rows = max(1, _STRIP_NUMBERS // len(codebook))
    # One buffer for all strips: new ones for each cost ten times the memory on a processor, which gives none back.
    buffer = vectors.new_empty(min(rows, len(vectors)), len(codebook))
    found = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    for start in range(0, len(vectors), rows):
        strip = vectors[start : start + rows]
        scores = torch.addmm(bias, strip, codebook.T, out=buffer[: len(strip)])
        torch.argmax(scores, dim=1, out=found[start : start + rows])
    return found
