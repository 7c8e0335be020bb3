"""What the codec presets cost on this machine: ``make bench`` prints a table. Nothing is asserted about speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from tokvid_tokenizers import load_codec
from tokvid_tokenizers.cost import codec_cost
from tokvid_tokenizers.presets import PRESETS

RUNS = 5
SIZE = (17, 128, 128)


def seconds(function: Callable[[], object]) -> float:
    """The median of several runs after one that is not counted."""
    function()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def test_presets() -> None:
    torch.manual_seed(0)
    frames = torch.rand(1, 3, *SIZE) * 2 - 1
    print(f"\none clip of {'x'.join(map(str, SIZE))}, fp32, {torch.get_num_threads()} threads, median of {RUNS} runs")
    print(f"{'preset':<20}{'M params':>9}{'GMAC':>8}{'codes':>7}{'encode s':>10}{'decode s':>10}")
    for name in (f"preset:{name}" for name in PRESETS):
        codec = load_codec(name)
        cost = codec_cost(codec.config, *SIZE)
        with torch.inference_mode():
            codes = codec.encode(frames)
            encode, decode = seconds(lambda c=codec: c.encode(frames)), seconds(lambda c=codec, k=codes: c.decode(k))
        print(
            f"{name:<20}{cost.parameters / 1e6:>9.2f}{cost.macs / 1e9:>8.2f}{cost.num_codes:>7}"
            f"{encode:>10.3f}{decode:>10.3f}"
        )
        assert codes.numel() == cost.num_codes
