"""What the documents say can be typed, and what they point at is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from supernet.config import compose

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
HEADERS = sorted((ROOT / "conf").rglob("*.yaml"))
COMMAND = re.compile(r"python -m supernet\.(train|retrain) ([^\n`]*)")


def commands() -> list[str]:
    found = []
    for path in [*PAGES, *HEADERS]:
        for _, arguments in COMMAND.findall(path.read_text()):
            found.append(arguments.split("  #")[0].strip())
    return sorted({c for c in found if c})


@pytest.mark.parametrize("arguments", commands())
def test_every_command_composes(arguments: str) -> None:
    words = [w for w in shlex.split(arguments) if w != "-m"]
    if any(word.startswith("-") for word in words) or "search.epoch=3" in words:  # flags; the documented mistake
        return
    first_of_sweep = [re.sub(r"^([\w.]+=[^,\[]+),.*", r"\1", word) for word in words]
    compose(first_of_sweep)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_and_named_file_is_there(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for name in re.findall(r"`((?:supernet|conf|tools|tests|docs)/[\w/.]+\.\w+)`", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_pages_name_no_machine() -> None:
    for path in PAGES:
        assert not re.search(r"/(work|root|home)/", path.read_text()), path
