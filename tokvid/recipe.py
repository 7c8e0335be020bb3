"""Recipes: one complete run configuration a file, found by path or by name among the shipped ones.

A recipe is plain YAML; this module reads it into dictionaries and applies ``--a.b=value``. What the keys mean
is known by the dataclasses that the packages build from it with :func:`tokvid.config.from_mapping`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tokvid.config import apply_overrides
from tokvid.errors import ConfigError, did_you_mean
from tokvid.shipped import recipes_folder


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe as nested dictionaries, with each ``--a.b=value`` of ``overrides`` applied.

    ``name_or_path`` is looked for as a file first, then among the shipped recipes (``codec/sprites-tiny``, or
    ``recipes/codec/sprites-tiny.yaml`` from any folder). Raises ConfigError when there is none or it is not a recipe.
    """
    path = find_recipe(name_or_path)
    text = read_text(path)
    try:
        data = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply to be a recipe") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values, got {type(data).__name__}")
    try:
        recipe = apply_overrides(data, ())
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return apply_overrides(recipe, overrides)


def read_text(path: Path) -> str:
    """The text of a recipe's file; raises ConfigError when it is no UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: a recipe is a UTF-8 text file, byte {error.start} is not") from error


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a recipe given by path or by shipped name; raises ConfigError with the closest name."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name one recipe file in it")
    known = shipped_recipes()
    name = path.as_posix().removeprefix("./").removeprefix("recipes/")
    name = name.removesuffix(".yaml").removesuffix(".yml")
    if name not in known:
        raise ConfigError(f"no file and no shipped recipe is called {str(name_or_path)!r}: {did_you_mean(name, known)}")
    return known[name]


def shipped_recipes() -> dict[str, Path]:
    """Every shipped recipe: its name (``codec/sprites-tiny``) and its file, sorted by name."""
    folder = recipes_folder()
    files = sorted(folder.rglob("*.yaml"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def summary(path: Path) -> str:
    """The first sentence of the comment that opens a recipe, or an empty string."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("#").strip()
        if not text and words:
            break
        words.append(text)
        if text.endswith("."):
            break
    sentence, dot, _ = " ".join(words).strip().partition(". ")
    return sentence + ("." if dot else "")


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, of which plain YAML keeps the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)
