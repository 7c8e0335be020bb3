"""The card of a folder of code shards: with it the folder is a data set repository of the Hugging Face Hub."""

from __future__ import annotations

import yaml

from tokvid.data.code_shards.format import DATA_FOLDER, FACTS_FILE, ShardsFacts

_TEXT = """
# Clips as codes

Video clips as the integers of the codec `{codec_id}`: {codebook_size:,} different codes, {num_codebooks} a cell; a cell
is {temporal_stride} frames (the first frame stands alone) of {spatial_stride}x{spatial_stride} pixels. Written by
tokvid; `{facts_file}` says of what.

| split | clips |
|---|---|
{rows}

A row is a clip: `codes` are its `num_codebooks * t * h * w` codes in this order, the last running fastest.

```python
import numpy as np
from datasets import load_dataset

row = load_dataset("parquet", data_files="{data_folder}/{split}-*.parquet", split="train")[0]
codes = np.reshape(row["codes"], (row["num_codebooks"], row["t"], row["h"], row["w"]))
```

`tokvid.data.code_shards.CodeShards(folder, "{split}")` reads the same, and checks it. Codes mean something to that
codec alone: no other decodes them.
"""


def card(facts: ShardsFacts) -> str:
    """Markdown, headed by the YAML in which the Hub looks for the files of every split."""
    files = [{"split": split, "path": f"{DATA_FOLDER}/{split}-*.parquet"} for split in facts.clips]
    head = {"tags": ["tokvid", "video-codes"], "configs": [{"config_name": "default", "data_files": files}]}
    codec = facts.codec
    text = _TEXT.format(
        codec_id=codec.codec_id,
        codebook_size=codec.codebook_size,
        num_codebooks=codec.num_codebooks,
        temporal_stride=codec.temporal_stride,
        spatial_stride=codec.spatial_stride,
        facts_file=FACTS_FILE,
        data_folder=DATA_FOLDER,
        split=next(iter(facts.clips)),
        rows="\n".join(f"| {split} | {count:,} |" for split, count in facts.clips.items()),
    )
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n{text}"
