"""The sprite world for other programs: as a ``datasets.Dataset``, or as mp4 files with captions beside them.

It knows no model; what it writes is read back by the same code that reads a user's own folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokvid.atomic import atomic_path
from tokvid.data.clip import Split
from tokvid.data.sprites.world import SpriteWorld
from tokvid.errors import DataError

if TYPE_CHECKING:
    from datasets.arrow_dataset import Dataset


def as_dataset(world: SpriteWorld, split: Split, count: int, *, cache_dir: Path | None = None) -> Dataset:
    """The first ``count`` clips of a split as a ``datasets.Dataset``.

    Columns: ``name``, ``caption``, ``fps`` and ``frames``, uint8 ``[T,H,W,3]``. The clips are generated once,
    into the cache of ``datasets`` (or ``cache_dir``), which knows them by the world's configuration, the split,
    the count and the sources of the generator.
    """
    from datasets.arrow_dataset import Dataset
    from datasets.features import Array4D, Features, Value

    _check_count(count)
    config = world.config
    columns = {
        "name": Value("string"),
        "caption": Value("string"),
        "fps": Value("float32"),
        "frames": Array4D(shape=(config.num_frames, *config.size, 3), dtype="uint8"),
    }
    options: dict[str, Any] = {} if cache_dir is None else {"cache_dir": str(cache_dir)}
    dataset: Dataset = Dataset.from_generator(
        _rows,
        features=Features(columns),
        gen_kwargs={"world": world, "split": split, "count": count, "sources": _digest_sources()},
        **options,
    )
    return dataset


def write_folder(world: SpriteWorld, folder: Path, split: Split, count: int) -> list[Path]:
    """Write the first ``count`` clips of a split as ``name.mp4`` and ``name.txt``; returns the mp4 paths.

    Raises DataError when ``folder`` already holds something.
    """
    from tokvid.video import Video, write_video

    _check_count(count)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise DataError(f"the folder {folder} is not empty; name a new or an empty one")
    paths = []
    for index in range(count):
        clip = world.clip(index, split=split)
        path = folder / f"{clip.name}.mp4"
        with atomic_path(path.with_suffix(".txt")) as temporary:
            temporary.write_text(clip.caption + "\n", encoding="utf-8")
        write_video(path, Video(frames=clip.frames, fps=clip.fps))
        paths.append(path)
    return paths


def _rows(world: SpriteWorld, split: Split, count: int, sources: str) -> Iterator[dict[str, Any]]:
    """The rows of the data set; ``sources`` is only there for the key of the cache, which hashes no code."""
    for index in range(count):
        clip = world.clip(index, split=split)
        yield {"name": clip.name, "caption": clip.caption, "fps": clip.fps, "frames": clip.frames}


def _check_count(count: int) -> None:
    if count < 1:
        raise DataError(f"the number of clips must be at least 1, got {count}")


def _digest_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in (".py", ".png", ".json"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
