"""List, show or copy the recipes: the complete run configurations that come with tokvid.

tokvid recipes list
tokvid recipes show codec/sprites-tiny
tokvid recipes copy codec/sprites-tiny mine.yaml
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tokvid.atomic import atomic_path
from tokvid.errors import DataError
from tokvid.recipe import find_recipe, read_text, shipped_recipes, summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``list [--json]``, ``show RECIPE``, ``copy RECIPE [DESTINATION] [-f]``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list | show | copy")
    listing = actions.add_parser("list", help="the name of every recipe and what it is for")
    listing.add_argument("--json", action="store_true", help="print JSON")
    show = actions.add_parser("show", help="print a recipe")
    show.add_argument("recipe", metavar="RECIPE", help="a name of 'tokvid recipes list'")
    copy = actions.add_parser("copy", help="copy a recipe to a file of your own, to change it")
    copy.add_argument("recipe", metavar="RECIPE", help="a name of 'tokvid recipes list'")
    copy.add_argument("destination", nargs="?", metavar="FILE", help="default: the recipe's own name, here")
    copy.add_argument("-f", "--force", action="store_true", help="overwrite the file when it exists")


def run(arguments: argparse.Namespace) -> int:
    """Do what ``arguments.action`` says."""
    if arguments.action == "list":
        return _list(as_json=arguments.json)
    source = find_recipe(arguments.recipe)
    if arguments.action == "show":
        sys.stdout.write(read_text(source))
        return 0
    return _copy(source, Path(arguments.destination or source.name), force=arguments.force)


def _list(*, as_json: bool) -> int:
    recipes = shipped_recipes()
    if as_json:
        print(json.dumps([{"name": name, "summary": summary(path)} for name, path in recipes.items()], indent=2))
        return 0
    width = max(map(len, recipes), default=0)
    for name, path in recipes.items():
        print(f"{name:<{width}}  {summary(path)}".rstrip())
    return 0


def _copy(source: Path, destination: Path, *, force: bool) -> int:
    if destination.is_dir():
        destination = destination / source.name
    if destination.exists() and not force:
        raise DataError(f"{destination} exists: give another name, or -f to overwrite it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    content = source.read_bytes()
    with atomic_path(destination) as beside:
        try:
            beside.write_bytes(content)
        except OSError as error:
            error.filename = str(destination)  # a full disk leaves it empty
            raise
    print(destination)
    return 0
