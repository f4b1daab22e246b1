"""The frame of a page: its style and its script are inside, and it may fetch nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from supernet.report.html.markup import Content, Html, el, join


def page(title: str, lead: Content, chapters: Sequence[tuple[str, str, Content]]) -> str:
    """A document of chapters (anchor, heading, contents); those without contents are left out."""
    there = [(anchor, heading, found) for anchor, heading, body in chapters if (found := join([body]))]
    links = [el("a", heading, href=f"#{anchor}") for anchor, heading, _ in there if heading]
    sections = [
        el("section", el("h2", heading) if heading else None, body, id=anchor) for anchor, heading, body in there
    ]
    style, script = (Path(__file__).with_name(name).read_text("utf-8") for name in ("page.css", "page.js"))
    # Whatever names of classes, files or operations hold: this script only, and nothing from elsewhere.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", title),
        el("style", Html(style)),
    )
    top = el("header", el("h1", title), el("p", lead, class_="lead"), el("nav", links))
    body = el("body", top, el("main", sections), el("script", Html(script)))
    return "<!DOCTYPE html>\n" + el("html", head, body, lang="en") + "\n"


def tile(name: str, value: str, note: str | None = None, *, first: bool = False) -> Html:
    """A figure that is read at a glance."""
    small = el("span", note) if note else None
    return el("div", el("span", name), el("b", value), small, class_="tile first" if first else "tile")
