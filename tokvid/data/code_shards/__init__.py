"""Code shards: clips as a codec's codes, in a folder of Parquet files that ``datasets`` opens as it is."""

from __future__ import annotations

from tokvid.data.code_shards.format import FACTS_FILE, CodecFacts, CodeRecord, ShardsFacts, is_code_shards
from tokvid.data.code_shards.pushing import push_shards
from tokvid.data.code_shards.reading import CodeShards, SplitSummary, verify
from tokvid.data.code_shards.writing import PlannedShard, ShardPlan, ShardWriter

__all__ = [
    "FACTS_FILE",
    "CodeRecord",
    "CodeShards",
    "CodecFacts",
    "PlannedShard",
    "ShardPlan",
    "ShardWriter",
    "ShardsFacts",
    "SplitSummary",
    "is_code_shards",
    "push_shards",
    "verify",
]
