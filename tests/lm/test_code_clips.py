"""Clips become codes a batch at a time: what is in memory at once does not grow with their number."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np

from tokvid.data.clip import Clip
from tokvid.data.clip_source import ClipSource
from tokvid.data.clips import materialise
from tokvid_lm.code_clips import code_clips
from tokvid_tokenizers import VideoCodec


class Grey(ClipSource):
    """``count`` clips of 17 frames of 16x16, made when they are asked for."""

    name, size, num_frames, fps = "grey", (16, 16), 17, 8.0

    def __init__(self, count: int) -> None:
        self.count = count
        self.all_bytes = count * 17 * 16 * 16 * 3

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> Clip:
        frames = np.full((17, 16, 16, 3), index % 256, np.uint8)
        return Clip(frames=frames, fps=8.0, caption="grey", name=f"grey-{index}")


def peak(call: Callable[[], object]) -> int:
    """The most bytes that ``call`` held at once (numpy's arrays count, torch's tensors do not)."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_frames_of_a_source_are_never_all_in_memory(codec: VideoCodec) -> None:
    code_clips(codec, Grey(4))  # what is imported once and for all
    source = Grey(256)
    assert peak(lambda: code_clips(codec, source, batch_size=16)) < source.all_bytes / 4


def test_clips_that_are_kept_are_held_once() -> None:
    source = Grey(256)
    assert source.all_bytes <= peak(lambda: materialise(source)) < 1.2 * source.all_bytes
