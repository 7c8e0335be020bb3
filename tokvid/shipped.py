"""Where the files that come with tokvid lie: recipes and cards.

In a checkout they are folders at the top; in an installed wheel they lie inside the package. Nothing here
knows what the files mean.
"""

from __future__ import annotations

from pathlib import Path

from tokvid.errors import DataError


def recipes_folder() -> Path:
    """The folder of the run configurations."""
    return _folder("recipes")


def hub_cards_folder() -> Path:
    """The folder with one folder per released model."""
    return _folder("hub_cards")


def _folder(name: str) -> Path:
    package = Path(__file__).resolve().parent
    for folder in (package / name, package.parent / name):
        # Only a checkout has a pyproject.toml beside the package: site-packages may hold anybody's "recipes".
        if folder.is_dir() and (folder.parent == package or (package.parent / "pyproject.toml").is_file()):
            return folder
    raise DataError(f"this installation of tokvid has no '{name}' folder: install tokvid again")
