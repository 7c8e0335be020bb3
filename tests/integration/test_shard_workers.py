"""What goes wrong in a process that encodes is said by the one that started it, and what was whole stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.tokenizers.lively import smallest_codec
from tokvid.cli.shard_workers import ShardJob, encode_shards
from tokvid.data.clip import Clip
from tokvid.data.clip_source import ClipSource
from tokvid.data.code_shards import CodecFacts, ShardPlan, ShardWriter
from tokvid.errors import DataError, ModelError, TokvidError

pytestmark = pytest.mark.slow


def refuse() -> None:
    raise DataError("the data cannot be read")


def die() -> None:
    os._exit(9)


class Cursed(ClipSource):
    """Six grey clips, of which the last does something else than load."""

    name, size, num_frames, fps = "cursed", (16, 16), 5, 8.0

    def __init__(self, curse: Callable[[], None]) -> None:
        self.curse = curse

    def __len__(self) -> int:
        return 6

    def load(self, index: int) -> Clip:
        if index == 5:
            self.curse()
        return Clip(frames=np.full((5, 16, 16, 3), index, np.uint8), fps=8.0, caption="grey", name=f"grey-{index}")


@pytest.mark.parametrize(
    ("curse", "error", "words"),
    [(refuse, DataError, "the data cannot be read"), (die, ModelError, "a process that encoded was killed")],
)
def test_an_error_of_a_process_is_told(
    tmp_path: Path, curse: Callable[[], None], error: type[TokvidError], words: str
) -> None:
    codec = smallest_codec()
    codec.save_pretrained(tmp_path / "codec")
    facts = CodecFacts(codec_id=codec.codec_id, codebook_size=75, num_codebooks=1, temporal_stride=4, spatial_stride=4)
    writer = ShardWriter(tmp_path / "out", ShardPlan(codec=facts, data={}, clips={"train": 6}, shard_clips=1))
    writer.begin()
    job = ShardJob(codec=str(tmp_path / "codec"), sources={"train": Cursed(curse)}, writer=writer)
    seen: list[int] = []
    with pytest.raises(error, match=words):
        encode_shards(job, writer.missing(), workers=2, progress=seen.append)
    assert "train-00005-of-00006" in [shard.name for shard in writer.missing()]
    assert seen == sorted(seen) and not list((tmp_path / "out").rglob("*.tmp"))
