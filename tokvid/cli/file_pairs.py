"""What the verbs from file to file share: a file to a file, or a folder to a folder with the tree kept.

It knows names and what is in the way; what is done with a pair is the verb's affair.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from tokvid.cli.main import one_line
from tokvid.errors import DataError, TokvidError


@dataclass(frozen=True, kw_only=True)
class FilePair:
    """A file to read and the one to write."""

    source: Path
    target: Path


@dataclass(frozen=True, kw_only=True)
class FilePairs:
    """The work of one command: ``skipped`` are those of a folder whose target is there already."""

    pairs: tuple[FilePair, ...]
    skipped: tuple[FilePair, ...]
    of_folder: bool

    def each(self, work: Callable[[FilePair], str]) -> int:
        """Do ``work`` on every pair and print its line; the exit code.

        In a folder a file that fails is named and the others go on; the exit code then is 2.
        """
        for pair in self.skipped:
            print(f"skipped: {pair.target} exists", file=sys.stderr)
        failed = 0
        for pair in self.pairs:
            try:
                print(f"{pair.target}: {work(pair)}", flush=True)
            except TokvidError as error:
                if not self.of_folder:
                    raise
                failed += 1
                print(f"failed: {one_line(error)}", file=sys.stderr)
        if self.of_folder:
            done = len(self.pairs) - failed
            print(f"{done} done, {len(self.skipped)} skipped, {failed} failed", file=sys.stderr)
        return 2 if failed else 0


def pairs(source: str, target: str, suffixes: Collection[str], suffix: str, *, force: bool) -> FilePairs:
    """The files to make: ``source`` is a file or a folder of files with one of ``suffixes``, ``target`` likewise.

    Without ``force``, a target file that exists is an error, and one inside a target folder is skipped. A file called
    ``target`` ends in ``suffix``, which the files of a folder get. Raises :class:`DataError`.
    """
    here, there = Path(source), Path(target)
    if here.is_dir():
        return _of_folder(here, there, suffixes, suffix, force=force)
    if not here.exists():
        raise DataError(f"{here} does not exist")
    if there.is_dir():
        raise DataError(f"{there} is a folder, {here} a file: name the file to write, {there / here.stem}{suffix} say")
    if there.suffix.lower() != suffix:
        raise DataError(f"{there} must end in {suffix}")
    if there.exists() and not force:
        raise DataError(f"{there} exists: give another name, or -f to overwrite it")
    return FilePairs(pairs=(FilePair(source=here, target=there),), skipped=(), of_folder=False)


def _of_folder(source: Path, target: Path, suffixes: Collection[str], suffix: str, *, force: bool) -> FilePairs:
    if target.is_file():
        raise DataError(f"{target} is a file, {source} a folder: name a folder to write to")
    files = sorted(p for p in source.rglob("*") if p.is_file() and p.suffix.lower() in suffixes)
    if not files:
        raise DataError(f"{source} holds no file of {', '.join(sorted(suffixes))}")
    made: dict[Path, Path] = {}
    for file in files:
        goal = target / file.relative_to(source).with_suffix(suffix)
        if goal in made:
            raise DataError(f"{made[goal]} and {file} would both become {goal}: rename one of them")
        made[goal] = file
    every = [FilePair(source=file, target=goal) for goal, file in made.items()]
    there = [pair for pair in every if pair.target.exists() and not force]
    return FilePairs(pairs=tuple(p for p in every if p not in there), skipped=tuple(there), of_folder=True)
