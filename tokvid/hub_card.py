"""Model cards: what is shared, how to load it, how it was made, and what was measured, with the commands for all of it.

A card holds no number that is not in a run's ``metrics.json``; what was not measured is called "not evaluated".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from tokvid.errors import ModelError
from tokvid.saved_json import read_mapping

RECIPE_FILE, METRICS_FILE = "recipe.json", "metrics.json"
# Of a recipe, what only says where and how often a run writes on its machine.
_PLACES = ("output",)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The training that made a model: its ``recipe``, the ``figures`` that it ended with, ``versions`` and seed."""

    recipe: Mapping[str, Any]
    figures: Mapping[str, Any]
    command: str
    versions: Mapping[str, str]
    machine: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card is rendered from. ``facts`` are of the model itself, ``use`` is Python that loads and uses it.

    ``base`` is the model on the Hub that it is adapters of.
    """

    title: str
    summary: str
    facts: Mapping[str, str]
    use: str
    tags: Sequence[str]
    pipeline: str | None = None
    license: str | None = None
    base: str | None = None
    run: Run | None = None
    limits: Sequence[str] = field(default_factory=tuple)


def read_run(folder: str | Path) -> Run:
    """The run in the output ``folder`` of ``tokvid train``.

    Raises :class:`ModelError` for a folder that is none, or whose ``metrics.json`` holds no numbers.
    """
    folder = Path(folder)
    for name in (RECIPE_FILE, METRICS_FILE):
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder} has no {name}, and a card is to say how good a model is: name the output folder of a"
                " finished 'tokvid train', or say that it was not evaluated"
            )
    recipe, metrics = (read_mapping(folder / name, "finished run") for name in (RECIPE_FILE, METRICS_FILE))
    made_by = metrics.pop("provenance", {})
    if not dict(numbers(metrics)):
        raise ModelError(f"{folder / METRICS_FILE} holds no numbers, and a card is to say how good a model is")
    return Run(
        recipe={name: _without_places(value) for name, value in recipe.items() if name not in _PLACES},
        figures=metrics,
        command=" ".join(made_by.get("command", ())),
        versions=made_by.get("versions", {}),
        machine=made_by.get("machine", {}),
    )


def _without_places(value: Any) -> Any:
    """``value`` with the last part alone of every path of this machine: a card is for others."""
    if isinstance(value, Mapping):
        return {name: _without_places(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    is_place = isinstance(value, str) and any(kind(value).is_absolute() for kind in (PurePosixPath, PureWindowsPath))
    return PurePosixPath(value.replace("\\", "/")).name if is_place else value


def numbers(figures: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """Every number of nested ``figures`` with its names joined."""
    for name, value in figures.items():
        here = f"{before}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from numbers(value, f"{here}, ")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield here, float(value)


def render(card: Card) -> str:
    """The README of a model's repository on the Hub: metadata in YAML, then Markdown."""
    head: dict[str, Any] = {"library_name": "tokvid", "tags": ["tokvid", *card.tags]}
    head |= {"pipeline_tag": card.pipeline} if card.pipeline else {}
    head |= {"license": card.license} if card.license else {}
    head |= {"base_model": card.base} if card.base else {}
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {card.title}",
        card.summary,
        _table(card.facts),
        f"```python\n{card.use.strip()}\n```",
        "## How it was made",
        *_made(card.run),
        "## What it reaches",
        *_reached(card.run),
        "## Limits",
        "\n".join(f"- {limit}" for limit in (*card.limits, "What the table above does not name was not evaluated.")),
    ]
    if not card.license:
        parts.append("Its makers state no licence here.")
    return "\n\n".join(parts) + "\n"


def _made(run: Run | None) -> list[str]:
    if run is None:
        return ["Not said."]
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    machine = ", ".join(f"{name} {value}" for name, value in run.machine.items())
    return [
        f"`{run.command}`" if run.command else "By a recipe of tokvid:",
        f"```yaml\n{yaml.safe_dump(dict(run.recipe), sort_keys=False)}```",
        f"Machine: {machine}. Versions: {versions}.",
    ]


def _reached(run: Run | None) -> list[str]:
    if run is None:
        return ["Not evaluated."]
    return [
        "On held-out clips, as that command printed it at its end:",
        _table({name: f"{value:.5g}" for name, value in numbers(run.figures)}),
    ]


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
