"""Random numbers that are a function of their place: (seed, sample, position, ...), and of nothing else.

A sample gets the same numbers alone, in any batch, on any device and after a restart. The hash is the
finaliser of splitmix64 over the counters, one after the other, on int64 tensors that wrap around.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number
_FIRST = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_SECOND = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


def uniform(seed: int, *counters: Tensor) -> Tensor:
    """Float32 numbers in [0, 1), multiples of 2^-23, of the shape to which the int64 ``counters`` broadcast."""
    state = torch.full((), _wrap(seed), dtype=torch.int64, device=counters[0].device)
    for counter in counters:
        state = _mix(_mix(state) ^ (counter * _GOLDEN + _GOLDEN))
    bits = _shift(_mix(state), 41)
    return bits.to(torch.float32) * 2.0**-23


def _mix(state: Tensor) -> Tensor:
    state = state + _GOLDEN
    state = (state ^ _shift(state, 30)) * _FIRST
    state = (state ^ _shift(state, 27)) * _SECOND
    return state ^ _shift(state, 31)


def _shift(state: Tensor, by: int) -> Tensor:
    # int64 shifts carry the sign along; the hash is defined on unsigned numbers.
    return (state >> by) & ((1 << (64 - by)) - 1)


def _wrap(seed: int) -> int:
    return (seed + 2**63) % 2**64 - 2**63
