"""Which videos lie in a folder, what captions they have, and which split they were put in. It opens no video.

Where the captions come from (``captions="auto"``, the first rule that fits):

1. ``metadata.jsonl`` in the folder or any folder below: one line ``{"file_name": ..., "caption" or "text": ...}`` a
   video, ``file_name`` relative to the folder of the jsonl. A line that names a missing file is an error.
2. Text files: ``name.txt`` beside ``name.mp4``. Every .txt is taken for a caption, so one without a video is an
   error (README, LICENSE and the like are left alone).
3. Class folders: no video lies in the folder itself (nor in the folder of a split), and at least two folders of
   different names below hold videos. The caption is the name of the folder a video lies in, as it is written.
4. Otherwise there are no captions.

Both a jsonl and matching text files are an error, because either might be meant. Setting ``captions`` to
``"metadata"``, ``"text"``, ``"folders"`` or ``"none"`` chooses a rule; the files of the other rules are then left
alone. Hidden files and folders (a leading dot) are never looked at.

Beside any of these, ``name.actions.json`` beside ``name.mp4`` holds what was done in the video: a JSON list of whole
numbers from 0 on, one from each frame to the next at the rate that clips are read at. One without a video is an error.

Where every video lies below ``train`` or below ``held_out`` (or ``validation``, ``val``, ``test``), and both hold some,
these folders are the splits, and their names are no captions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokvid.data.clip import Split
from tokvid.errors import DataError

CaptionRule = Literal["auto", "metadata", "text", "folders", "none"]

VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mkv",
        ".webm",
        ".mov",
        ".avi",
        ".mpg",
        ".mpeg",
        ".m2v",
        ".gif",
        ".ts",
        ".mts",
        ".m2ts",
        ".wmv",
        ".flv",
        ".ogv",
        ".3gp",
        ".y4m",
        ".h264",
        ".hevc",
    ]
)
_TABLE = "metadata.jsonl"
_ACTIONS = ".actions.json"
_MOST_ACTION = 2**31 - 1  # what a file of codes holds
_DOCUMENTS = frozenset(["readme", "license", "licence", "notice", "copying", "changelog", "authors", "credits"])
_SPLITS: dict[str, Split] = {
    "train": "train",
    "held_out": "held_out",
    "validation": "held_out",
    "val": "held_out",
    "test": "held_out",
}
_NAMED = 5  # so many names in a message, then a count


@dataclass(frozen=True, kw_only=True)
class CaptionedVideo:
    """A video file; ``name`` is its path relative to the folder, with forward slashes; ``caption`` may be empty.

    ``split`` is that of its folder, or None where no folders are splits. ``actions`` are those of ``actions_file``,
    one from each frame to the next at a rate that only its writer knows.
    """

    path: Path
    name: str
    caption: str
    split: Split | None = None
    actions: tuple[int, ...] = ()
    actions_file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class FolderScan:
    """The videos of a folder sorted by name, and the rule that gave their captions."""

    videos: tuple[CaptionedVideo, ...]
    rule: CaptionRule


def scan_folder(folder: Path, captions: CaptionRule = "auto") -> FolderScan:
    """List the videos of ``folder``; :class:`DataError` where there is none or a caption has no video."""
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; check the path"
            if not folder.exists()
            else f"{folder}: is no folder; name the one it lies in"
        )
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path, folder)]
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    tables = [path for path in files if path.name == _TABLE]
    texts = [path for path in files if path.suffix.lower() == ".txt" and path.stem.lower() not in _DOCUMENTS]
    no_class = {folder, *(folder / name for name in _SPLITS if _splits(folder, videos))}
    rule = _choose_rule(folder, videos, tables, texts, no_class) if captions == "auto" else captions
    if rule == "metadata":
        if not tables:
            raise DataError(f"{folder}: holds no {_TABLE}; write one, or choose other captions than 'metadata'")
        found = _from_tables(folder, tables)
    elif rule == "text":
        found = _from_texts(folder, videos, texts)
    elif rule == "folders":
        found = {path: path.parent.name for path in videos if path.parent not in no_class}
    else:
        found = {}
    paths = sorted({*videos, *found})
    if not paths:
        raise DataError(f"{folder}: holds no video (of {', '.join(sorted(VIDEO_SUFFIXES))}); name a folder with some")
    splits = _splits(folder, paths)
    action_files = _action_files(folder, files, paths)
    return FolderScan(
        rule=rule,
        videos=tuple(
            CaptionedVideo(
                path=path,
                name=path.relative_to(folder).as_posix(),
                caption=found.get(path, ""),
                split=splits.get(path),
                actions=_read_actions(action_files[path], folder) if path in action_files else (),
                actions_file=action_files.get(path),
            )
            for path in paths
        ),
    )


def name_some(names: Sequence[str]) -> str:
    """``a, b, c and 4 more``."""
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _splits(folder: Path, videos: Sequence[Path]) -> dict[Path, Split]:
    """The split of every video, or nothing where the folders are not those of splits."""
    found = {path: _SPLITS.get(path.relative_to(folder).parts[0]) for path in videos}
    splits = {path: split for path, split in found.items() if split is not None}
    return splits if len(splits) == len(videos) and len(set(splits.values())) == 2 else {}


def _choose_rule(
    folder: Path, videos: list[Path], tables: list[Path], texts: list[Path], no_class: set[Path]
) -> CaptionRule:
    stems = {path.with_suffix("") for path in videos}
    if tables:
        beside = [_relative(path, folder) for path in texts if path.with_suffix("") in stems]
        if beside:
            raise DataError(
                f"{folder}: has both {_TABLE} and caption files ({name_some(beside)});"
                " set captions to 'metadata' or 'text'"
            )
        return "metadata"
    if texts:
        return "text"
    classes = {path.parent for path in videos}
    return "folders" if not no_class & classes and len({path.name for path in classes}) > 1 else "none"


def _from_texts(folder: Path, videos: list[Path], texts: list[Path]) -> dict[Path, str]:
    captions = {path.with_suffix(""): path for path in texts}
    stems = {path.with_suffix("") for path in videos}
    orphans = [_relative(path, folder) for stem, path in captions.items() if stem not in stems]
    if orphans:
        raise DataError(
            f"{folder}: {len(orphans)} captions have no video beside them: {name_some(orphans)};"
            " add the videos, remove the files, or set captions to another rule than 'text'"
        )
    found = {video: captions.get(video.with_suffix("")) for video in videos}
    return {video: " ".join(_read(text, folder).split()) for video, text in found.items() if text is not None}


def _action_files(folder: Path, files: list[Path], videos: list[Path]) -> dict[Path, Path]:
    """The file of actions beside every video that has one."""
    by_stem = {
        path.with_name(path.name[: -len(_ACTIONS)]): path for path in files if path.name.lower().endswith(_ACTIONS)
    }
    stems = {video.with_suffix("") for video in videos}
    orphans = [_relative(path, folder) for stem, path in by_stem.items() if stem not in stems]
    if orphans:
        raise DataError(
            f"{folder}: {len(orphans)} files of actions have no video beside them: {name_some(orphans)};"
            " add the videos or remove the files"
        )
    return {video: by_stem[video.with_suffix("")] for video in videos if video.with_suffix("") in by_stem}


def _read_actions(path: Path, folder: Path) -> tuple[int, ...]:
    text = _read(path, folder)
    try:
        actions: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error}); write a list of whole numbers") from error
    if not isinstance(actions, list):
        raise DataError(f"{path}: actions are a JSON list of whole numbers, got {type(actions).__name__}")
    for number, action in enumerate(actions):
        if type(action) is not int or not 0 <= action <= _MOST_ACTION:
            raise DataError(
                f"{path}: action {number} must be a whole number from 0 to {_MOST_ACTION}, got {str(action)[:40]!r}"
            )
    return tuple(actions)


def _from_tables(folder: Path, tables: list[Path]) -> dict[Path, str]:
    found: dict[Path, str] = {}
    missing: list[str] = []
    for table in tables:
        for number, line in enumerate(_read(table, folder).splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{table}, line {number}"
            path, caption = _table_line(line, where, table.parent, folder)
            if path in found:
                raise DataError(f"{where}: names {path.name!r} a second time; keep one line a video")
            found[path] = caption
            if not path.is_file():
                missing.append(f"{_relative(path, folder)} (line {number})")
    if missing:
        raise DataError(
            f"{tables[0]}: names {len(missing)} missing files: {name_some(missing)}; add them or drop the lines"
        )
    return found


def _table_line(line: str, where: str, beside: Path, folder: Path) -> tuple[Path, str]:
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: is not JSON ({error.msg})") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
        raise DataError(f'{where}: expected {{"file_name": ..., "caption": ...}}, got {line.strip()[:80]}')
    if "caption" not in entry and "text" not in entry:
        raise DataError(f"{where}: has neither 'caption' nor 'text', only {', '.join(sorted(map(str, entry)))}")
    caption = entry.get("caption", entry.get("text"))
    if caption is not None and not isinstance(caption, str):
        raise DataError(f"{where}: the caption must be a string, got {caption!r}")
    path = beside / entry["file_name"]
    if ".." in Path(entry["file_name"]).parts or not path.is_relative_to(folder):
        raise DataError(f"{where}: {entry['file_name']!r} lies outside {folder}; name files in it")
    return path, " ".join((caption or "").split())


def _read(path: Path, folder: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{_relative(path, folder)}: is not UTF-8 text (byte {error.start}); re-save it as UTF-8"
        ) from error


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
