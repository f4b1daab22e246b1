"""Print the table of methods and their parts, from conf/method/*.yaml, and write it into README.md.

    python tools/methods.py            # prints the table and rewrites it between the two markers in README.md
    python tools/methods.py --check    # exit code 1 where the table in README.md is stale

Nothing of the project is imported: a method is its YAML file. What a method does not override is the default of
conf/config.yaml. The page of a method is docs/methods/<name>.md, or the one there that gives the command
``method=<name>``, where variants share a page.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
MARKERS = ("<!-- methods -->", "<!-- /methods -->")
GROUPS = ("relaxation", "update", "modifier", "derive")


@dataclass(frozen=True)
class Method:
    """One row: its paper, and the option of every group; of ``modifier`` any number."""

    name: str
    paper: str  # arXiv id, or the address of a paper that has none
    parts: dict[str, tuple[str, ...]]
    page: Path | None


def overrides(path: Path) -> dict[str, tuple[str, ...]]:
    """Group -> options, of a file's defaults list."""
    chosen = {}
    for item in yaml.safe_load(path.read_text(encoding="utf-8")).get("defaults", []):
        for key, value in item.items() if isinstance(item, dict) else ():
            group = key.removeprefix("override ").lstrip("/")
            chosen[group] = tuple(value) if isinstance(value, list) else (str(value),)
    return chosen


def read(root: Path) -> list[Method]:
    """All methods, by name."""
    defaults: dict[str, Any] = overrides(root / "conf" / "config.yaml")
    found = []
    for path in sorted((root / "conf" / "method").glob("*.yaml")):
        chosen = defaults | overrides(path)
        header = path.read_text(encoding="utf-8")
        paper = re.search(r"(?<=arXiv:)\d{4}\.\d{5}", header) or re.search(r"openreview\.net/forum\?id=[\w-]+", header)
        parts = {group: chosen[group] for group in GROUPS}
        found.append(Method(path.stem, paper[0] if paper else "", parts, page(root, path.stem)))
    return found


def page(root: Path, name: str) -> Path | None:
    """The page that describes a method."""
    own = root / "docs" / "methods" / f"{name}.md"
    if own.exists():
        return own
    command = re.compile(rf"method={re.escape(name)}(?!\w)")
    pages = sorted((root / "docs" / "methods").glob("*.md"))
    return next((p for p in pages if command.search(p.read_text(encoding="utf-8"))), None)


def table(methods: list[Method], root: Path) -> str:
    """The Markdown table; the file README.md stands in ``root``."""
    rows = ["| method | paper | relaxation | update | modifiers | derivation |", "|---|---|---|---|---|---|"]
    for m in methods:
        name = f"[{m.name}]({m.page.relative_to(root).as_posix()})" if m.page else m.name
        url = f"https://{m.paper}" if "/" in m.paper else f"https://arxiv.org/abs/{m.paper}"
        paper = f"[{m.paper.partition('/')[0]}]({url})" if m.paper else ""
        parts = [", ".join(f"`{option}`" for option in m.parts[group]) for group in GROUPS]
        rows.append("| " + " | ".join([name, paper, *parts]) + " |")
    return "\n".join(rows)


def rewritten(text: str, new: str) -> str:
    """``text`` with the table between its markers."""
    begin, end = MARKERS
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"README.md: the table of methods stands between {begin} and {end}, which are not there")
    return f"{before}{begin}\n{new}\n{end}{after}"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where the table is stale")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    shown = table(read(ROOT), ROOT)
    new = rewritten(old, shown)
    if args.check:
        if new != old:
            print("the table of methods in README.md is stale; run: python tools/methods.py", file=sys.stderr)
        return int(new != old)
    if new != old:
        readme.write_text(new, encoding="utf-8")
    print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
