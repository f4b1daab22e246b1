"""HTML and SVG as values: what is not marked up is escaped, and what is opened is closed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from supernet.report.colours import Rgb

EMPTY = ("meta", "img", "br", "rect", "path", "circle", "line", "polygon")


class Html(str):
    """Text that is markup already; any other text is escaped where it is put into an element."""


@dataclass(frozen=True)
class Figure:
    """A number in a table, ordered by its value and read as its text."""

    value: float
    text: str


Content = str | int | float | None | Iterable["Content"]
Attribute = str | int | float | None


def el(name: str, /, *children: Content, **attributes: Attribute) -> Html:
    """``el("p", "a < b", class_="note")``; an underscore in an attribute's name is a hyphen, None leaves it out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(_number(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = join(children)
    return Html(f"<{name}{given}/>" if not inner and name in EMPTY else f"<{name}{given}>{inner}</{name}>")


def join(children: Iterable[Content]) -> Html:
    """One after the other; None is nothing."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, (str, int, float)):
            parts.append(escape(_plain(_number(child))))
        elif child is not None:
            parts.append(join(child))
    return Html("".join(parts))


def _number(value: str | int | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    """Without characters that a page cannot hold."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def hex_of(colour: Rgb) -> str:
    """``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def details(summary: Content, *children: Content) -> Html:
    """Folded until it is opened."""
    return el("details", el("summary", summary), *children)


def scroll(*children: Content) -> Html:
    """What may be wider than the page scrolls by itself."""
    return el("div", *children, class_="scroll", tabindex=0)


def table(header: Iterable[Content], rows: Iterable[Iterable[Content | Figure]], *, sortable: bool = False) -> Html:
    """Numbers stand to the right; a sortable table is ordered by a click on a header."""
    head = el("thead", el("tr", [el("th", cell, scope="col") for cell in header]))
    body = el("tbody", [el("tr", [_cell(cell) for cell in row]) for row in rows])
    return scroll(el("table", head, body, class_="sortable" if sortable else None))


def _cell(value: Content | Figure) -> Html:
    if isinstance(value, Figure):
        return el("td", value.text, class_="number", data_value=repr(value.value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        return el("td", shown, class_="number", data_value=repr(value))
    text = str(value) if isinstance(value, str) else ""
    numeric = text[:1].isdigit() or (text[:1] in "-+" and text[1:2].isdigit())
    return el("td", "-" if value is None else value, class_="number" if numeric else None)
