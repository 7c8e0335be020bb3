"""Turn a whole data set into code shards: Parquet files of codes and captions to train language models on.

tokvid tokenize my_videos codes --codec runs/codec/codec --size 64x64
tokvid tokenize lm/sprites-tiny codes --codec runs/demo/codec/codec

DATA is a folder of videos, 'sprites' for the built-in world, or a recipe, whose data section then says what clips are
read (options go first). Both splits are written, every clip once. Stopped and run again, the command goes on with the
next shard that is missing. 'tokvid info OUT' checks what was written.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokvid.cli.clip_options import add_shape_options, data_config
from tokvid.cli.clips import tell
from tokvid.cli.progress import counted
from tokvid.config import to_mapping
from tokvid.data.clip import Split
from tokvid.data.clip_source import ClipSource, spread
from tokvid.data.clips import DataConfig, FolderClips, FolderDataConfig, SpriteDataConfig, open_splits
from tokvid.data.folder_scan import name_some
from tokvid.errors import ConfigError, ModelError
from tokvid.runtime import usable_cores

if TYPE_CHECKING:
    from tokvid.data.code_shards import CodecFacts, ShardsFacts, ShardWriter

_SHARD_CLIPS = 1024
_MOST_WORKERS = 8  # of those that nobody asked for: each holds a codec, and what it needs to encode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``DATA OUT --codec CODEC``, which clips, and in how many processes."""
    parser.add_argument("data", metavar="DATA", help="a folder of videos, 'sprites', or a recipe")
    parser.add_argument("output", metavar="OUT", help="the folder to write the shards to")
    parser.add_argument(
        "--codec",
        required=True,
        metavar="CODEC",
        help="a codec's folder, org/name on the Hub, vidtok:FOLDER or preset:NAME",
    )
    add_shape_options(parser)
    parser.add_argument(
        "--clips", type=int, metavar="N", help="at most so many clips a split, spread over DATA (default: all)"
    )
    parser.add_argument(
        "--shard-clips", type=int, default=_SHARD_CLIPS, metavar="N", help=f"clips a file (default {_SHARD_CLIPS})"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help=f"processes that encode (default: a core each, at most {_MOST_WORKERS})",
    )
    parser.add_argument("-f", "--force", action="store_true", help="overwrite the shards of something else in OUT")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Encode what is missing, write what the folder holds, and print it."""
    for option, value in (("--clips", arguments.clips), ("--workers", arguments.workers)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} must be at least 1, got {value}")
    config = _at_most(arguments.clips, data_config(arguments.data, arguments))
    from tokvid.cli.shard_workers import ShardJob, encode_shards
    from tokvid.data.code_shards import ShardPlan, ShardWriter
    from tokvid.provenance import provenance

    codec = _codec_facts(arguments.codec, config)
    sources = _sources(config, arguments.clips)
    plan = ShardPlan(
        codec=codec,
        data=_described(config, sources),
        clips={split: len(source) for split, source in sources.items()},
        shard_clips=arguments.shard_clips,
    )
    writer = ShardWriter(arguments.output, plan)
    writer.begin(force=arguments.force)
    job = ShardJob(
        codec=arguments.codec,
        sources=sources,
        writer=writer,
        folder=str(Path(config.path)) if isinstance(config, FolderDataConfig) else "",
    )
    missing = writer.missing()
    total = sum(plan.clips.values())
    before = total - sum(shard.last - shard.first for shard in missing)
    with counted("tokenize") as progress:
        encode_shards(
            job,
            missing,
            workers=arguments.workers or min(usable_cores(), _MOST_WORKERS),
            progress=lambda done: progress(before + done, total),
        )
    # Of a folder both splits have the same list.
    skipped = {item.name: job.told(item) for source in sources.values() for item in source.skipped}
    made_by = {"codec": Path(arguments.codec).name, **provenance()}
    _print(writer, writer.finish(list(skipped.values()), made_by), as_json=arguments.json)
    return 0


def _codec_facts(name: str, config: DataConfig) -> CodecFacts:
    """What is to be known of the codec called ``name``, which must suit the clips, before any is read."""
    from tokvid.data.code_shards import CodecFacts
    from tokvid_tokenizers import load_codec

    codec = load_codec(name)
    if not codec.num_codebooks:
        raise ModelError(f"{name} is a continuous codec and has no codes; give one with a codebook")
    codec.check_causal("code shards")
    codec.grid_for(config.num_frames, *config.size)
    return CodecFacts(
        codec_id=codec.codec_id,
        codebook_size=codec.codebook_size,
        num_codebooks=codec.num_codebooks,
        temporal_stride=codec.temporal_stride,
        spatial_stride=codec.spatial_stride,
    )


def _at_most(clips: int | None, config: DataConfig) -> DataConfig:
    """Fewer sprites: there are as many as are asked for, and the first are as good as any."""
    if clips is None or not isinstance(config, SpriteDataConfig):
        return config
    train, held_out = min(clips, config.train_clips), min(clips, config.held_out_clips)
    return replace(config, train_clips=train, held_out_clips=held_out)


def _sources(config: DataConfig, most: int | None) -> dict[Split, ClipSource]:
    """Both splits; of each of a folder at most so many clips, spread over it."""
    train_clips, held_out_clips = open_splits(config)
    tell(train_clips, held_out_clips)
    return {"train": _some(train_clips, most), "held_out": _some(held_out_clips, most)}


def _some(source: ClipSource, most: int | None) -> ClipSource:
    if most is None or not isinstance(source, FolderClips):
        return source
    return source.select(spread(len(source), most))


def _described(config: DataConfig, sources: dict[Split, ClipSource]) -> dict[str, Any]:
    """What the clips are made of, without the place of a folder, and digests that differ where they do."""
    described = to_mapping(config)
    if isinstance(config, FolderDataConfig):
        described["path"] = Path(config.path).resolve().name
    return described | {"digest": {split: source.digest(words=True) for split, source in sources.items()}}


def _print(writer: ShardWriter, facts: ShardsFacts, *, as_json: bool) -> None:
    size = sum(shard.bytes for shard in facts.shards)
    if as_json:
        found = {
            "folder": str(writer.folder),
            "codec_id": facts.codec.codec_id,
            "clips": facts.clips,
            "shards": len(facts.shards),
            "bytes": size,
            "skipped": [asdict(item) for item in facts.skipped],
        }
        print(json.dumps(found, indent=2))
        return
    if facts.skipped:
        names = name_some([item.name for item in facts.skipped])
        print(f"{len(facts.skipped)} skipped, code_shards.json says why: {names}", file=sys.stderr)
    counts = ", ".join(f"{split} {count} clips" for split, count in facts.clips.items())
    print(f"{writer.folder}: {counts}; {len(facts.shards)} shards, {size:,} bytes, codes of {facts.codec.codec_id}")
