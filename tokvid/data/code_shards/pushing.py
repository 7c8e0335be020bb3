"""Code shards on the Hugging Face Hub, as a data set repository with the card that lies beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from tokvid.data.code_shards.format import DATA_FOLDER, FACTS_FILE
from tokvid.data.code_shards.reading import verify
from tokvid.hub import PushOptions, upload_folder


def push_shards(folder: str | Path, name: str, **hub: Unpack[PushOptions]) -> str:
    """Put the code shards in ``folder`` on the Hub as the data set ``org/name``; the address of the commit.

    Every shard is read before, so that none goes there torn. Shards that were there go. See
    :func:`tokvid.hub.upload_folder`, and :func:`verify` for what it raises.
    """
    verify(folder)
    return upload_folder(Path(folder), name, kind="dataset", replaced=(f"{DATA_FOLDER}/*.parquet", FACTS_FILE), **hub)
