"""The report: one HTML file that holds its pictures, plots and style, and opens anywhere without a network.

A builder of named pieces: headings, text, tables, clips with verdicts, plots, facts. It knows how a page looks and
nothing about what is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, Self

from tokvid.atomic import write_text


@dataclass(frozen=True, kw_only=True)
class Card:
    """A picture (data URI) with its caption, a verdict (right, wrong or none) and a detail in small print."""

    uri: str
    caption: str = ""
    verdict: bool | None = None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A headline number: ``value`` as text, its ``goal`` as text, and whether it is reached (None: not judged)."""

    name: str
    value: str
    goal: str = ""
    reached: bool | None = None


class Report:
    """Add pieces in reading order, then :meth:`save`. Every text is escaped; every method returns the report."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._pieces: list[str] = []
        self._sections: list[str] = []

    def section(self, title: str, text: str = "") -> Self:
        """Start a section; it appears in the contents at the top."""
        self._sections.append(title)
        self._pieces.append(f'<h2 id="s{len(self._sections)}">{escape(title)}</h2>')
        return self.paragraph(text) if text else self

    def paragraph(self, text: str) -> Self:
        """Add a paragraph of plain text."""
        return self._add(f"<p>{escape(text)}</p>")

    def figures(self, figures: Sequence[Figure]) -> Self:
        """Add headline numbers as tiles."""
        return self._add(f'<div class="figures">{"".join(map(_figure, figures))}</div>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> Self:
        """Add a table; numbers are set to the right, a bool becomes a verdict badge."""
        head = "".join(f"<th>{escape(name)}</th>" for name in header)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        return self._add(f'<div class="wide"><table>{title}<tr>{head}</tr>{body}</table></div>')

    def cards(self, cards: Sequence[Card], width: int = 150) -> Self:
        """Add a grid of pictures, each at least ``width`` pixels wide, as many a row as the screen holds."""
        style = f"grid-template-columns:repeat(auto-fill,minmax({width}px,1fr))"
        return self._add(f'<div class="cards" style="{style}">{"".join(map(_card, cards))}</div>')

    def plots(self, *svgs: str) -> Self:
        """Add plots (SVG text of :mod:`tokvid.report.plots`), two a row where the screen is wide."""
        return self._add(f'<div class="plots">{"".join(f"<figure>{svg}</figure>" for svg in svgs)}</div>')

    def facts(self, facts: Mapping[str, Any], title: str = "") -> Self:
        """Add names and values (versions, seeds, timings), nested ones with dotted names; closed until clicked."""
        rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in _flat(facts))
        return self._add(
            f'<details><summary>{escape(title or "Facts")}</summary><div class="wide"><table class="facts">'
            f"{rows}</table></div></details>"
        )

    def html(self) -> str:
        """The whole page."""
        style = resources.files("tokvid.report").joinpath("page.css").read_text(encoding="utf-8")
        links = "".join(f'<a href="#s{i}">{escape(name)}</a>' for i, name in enumerate(self._sections, 1))
        contents = f"<nav>{links}</nav>" if len(self._sections) > 1 else ""
        subtitle = f'<p class="subtitle">{escape(self.subtitle)}</p>' if self.subtitle else ""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{escape(self.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{escape(self.title)}</h1>\n{subtitle}\n{contents}\n"
            + "\n".join(self._pieces)
            + "\n</main>\n</body>\n</html>\n"
        )

    def save(self, path: str | Path) -> Path:
        """Write the page, whole or not at all, and return its path."""
        path = Path(path)
        write_text(path, self.html())
        return path

    def _add(self, piece: str) -> Self:
        self._pieces.append(piece)
        return self


def _figure(figure: Figure) -> str:
    goal = f'<span class="goal">{escape(figure.goal)}</span>' if figure.goal else ""
    return (
        f'<div class="figure"><span class="name">{escape(figure.name)}</span>'
        f'<span class="value">{escape(figure.value)}</span>'
        f"<span>{goal}{_badge(figure.reached, 'reached', 'missed')}</span></div>"
    )


def _card(card: Card) -> str:
    badge = _badge(card.verdict, "right", "wrong")
    detail = f"<small>{escape(card.detail)}</small>" if card.detail else ""
    words = f"<figcaption>{badge}{escape(card.caption)}{detail}</figcaption>" if badge or card.caption or detail else ""
    image = f'<img src="{escape(card.uri)}" alt="{escape(card.caption)}">'
    return f'<figure class="card">{image}{words}</figure>'


def _badge(verdict: bool | None, yes: str, no: str) -> str:
    if verdict is None:
        return ""
    return f'<span class="badge {"yes" if verdict else "no"}">{"✓" if verdict else "✗"} {yes if verdict else no}</span>'


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return f"<td>{_badge(value, 'yes', 'no')}</td>"
    if isinstance(value, float):
        return f'<td class="number">{value:.4g}</td>'
    if isinstance(value, int):
        return f'<td class="number">{value:,}</td>'
    return f"<td>{escape('' if value is None else str(value))}</td>"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat
