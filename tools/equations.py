"""List paper -> equation -> function -> tests in docs/equations.md, from the docstrings of supernet/.

    python tools/equations.py            # writes docs/equations.md, prints the same with lines of files
    python tools/equations.py --check    # exit code 1 where docs/equations.md is stale or a docstring is off the form

A docstring addresses an equation as ``Name (arXiv:NNNN.NNNNN), eq. 7``, or with ``openreview:ID`` where a paper has no
arXiv id; likewise ``section 2.4``, ``algorithm 1``, ``appendix A.1``, ``table 2``; several go on with commas, "and" or
"to": ``eq. 7, eq. 8 and 9``, ``eq. 5 to 8``. A paper that is a docstring's whole subject may stand without one.

A test belongs to a symbol where its function, or a helper, fixture or table of the same file that it uses, names what
was imported from the symbol's module, or names a registered part as the configuration does (``update=unrolled``), or
names it beside ``PARTS["update", name]``.

``tools/equations_checked.yaml`` says which numbers were compared with a paper's text, and with which; the page marks
the others. Everything is read as text: nothing of the project is imported. Options (``supernet/schema/``) are left out,
since they say what a part does that has the address.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGE, CHECKED = "docs/equations.md", "tools/equations_checked.yaml"
KINDS = ("eq.", "algorithm", "section", "appendix", "table", "figure", "paper")
_NUMBER = r"[A-Z]?\d*(?:\.\d+)*[a-z]?(?![\w.]*\w)"
_PLACE = rf"(?:eq\.|section|algorithm|appendix|table|figure)\s+{_NUMBER}"
_JOIN = r"\s*(?:,\s*and|,|;|and|to)\s+"
PAPER = re.compile(
    r"(?P<name>[^\s().,;:\"'`]+(?: [A-Z+][^\s().,;:\"'`]*)*)\s+\((?P<id>arXiv:\d{4}\.\d{5}|openreview:[\w-]+)\)"
)
PLACES = re.compile(rf",?\s+(?P<all>{_PLACE}(?:{_JOIN}(?:{_PLACE}|{_NUMBER}))*)")
LOOSE = re.compile(r"\b(?:eqs?\.|equations?|sections?|algorithm|appendix)\s+\(?[A-Z]?\d", re.IGNORECASE)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Address:
    """Where a paper says what a symbol does."""

    paper: str
    source: str  # arXiv:... or openreview:...
    place: str

    @property
    def order(self) -> tuple[int, list[tuple[int, str]]]:
        """Equations first, by number."""
        kind, _, number = self.place.partition(" ")
        return KINDS.index(kind), [(int(d or 0), text) for d, text in re.findall(r"(\d+)|([A-Za-z]+)", number)]


@dataclass
class Symbol:
    """A module, class, method or function with its docstring."""

    file: str
    module: str
    name: str
    line: int
    docstring: str
    tests: list[str] = field(default_factory=list)
    parts: list[tuple[str, str]] = field(default_factory=list)  # (group, name) of the registry that it builds

    @property
    def addresses(self) -> list[Address]:
        return addresses(self.docstring)


def addresses(docstring: str) -> list[Address]:
    """All addresses in a docstring, in its order."""
    text = " ".join(docstring.split())
    found: dict[Address, None] = {}
    papers = list(PAPER.finditer(text))
    for paper in papers:
        match = PLACES.match(text, paper.end())
        for place in _places(match["all"]) if match else []:
            found[Address(_name(paper["name"]), paper["id"], place)] = None
    return list(found) or [Address(_name(paper["name"]), paper["id"], "paper") for paper in papers]


def _name(words: str) -> str:
    """``of DARTS`` is DARTS."""
    first, _, rest = words.partition(" ")
    return rest if rest and first.isalpha() and first.islower() else words


def deviation(docstring: str) -> str | None:
    """What in a docstring looks like an address and is none; a paper that is only mentioned may be written anyhow."""
    text = " ".join(docstring.split())
    ends = [paper.end() for paper in PAPER.finditer(text)]
    for mention in re.finditer(r"arXiv:\d{4}\.\d{5}\)?", text):
        if mention.end() not in ends and LOOSE.match(text[mention.end() :].lstrip(",.: ")):
            return mention[0]
    if all(address.place == "paper" for address in addresses(text)) and (loose := LOOSE.search(text)):
        return loose[0]
    return None


def _places(text: str) -> Iterator[str]:
    """``eq. 5 to 7 and section 2`` one by one: eq. 5, eq. 6, eq. 7, section 2."""
    kind, last, join = "", "", ""
    for token in re.findall(rf"eq\.|section|algorithm|appendix|table|figure|to|and|,|;|{_NUMBER}", text):
        if token in KINDS:
            kind = token
        elif token in ("to", "and", ",", ";"):
            join = token
        elif token:
            if join == "to" and token.isdigit() and last.isdigit():
                yield from (f"{kind} {number}" for number in range(int(last) + 1, int(token)))
            yield f"{kind} {token}"
            last, join = token, ""


def symbols(root: Path) -> Iterator[Symbol]:
    """Everything under ``supernet/`` that has a docstring, options aside."""
    for path in sorted((root / "supernet").rglob("*.py")):
        file = path.relative_to(root).as_posix()
        if file.startswith("supernet/schema/"):
            continue
        module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        yield from _symbols(ast.parse(path.read_text(encoding="utf-8")), file, module, "")


def _symbols(node: ast.Module | ast.ClassDef | Function, file: str, module: str, name: str) -> Iterator[Symbol]:
    docstring = ast.get_docstring(node)
    if docstring:
        yield Symbol(file, module, name, getattr(node, "lineno", 1), docstring)
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _symbols(child, file, module, f"{name}.{child.name}".lstrip("."))


@dataclass(frozen=True)
class Test:
    """A test function with what it writes: dotted names from ``supernet``, attributes by themselves, and texts."""

    name: str
    names: frozenset[str]
    texts: frozenset[str]

    def covers(self, symbol: Symbol) -> bool:
        """Whether it names the symbol: imported from its module or from a package above that passes it on."""
        owner, _, method = symbol.name.partition(".")
        if not owner:
            return False
        if any(self.chooses(group, name) for group, name in symbol.parts):
            return True
        module = symbol.module
        while module:
            if f"{module}.{owner}" in self.names:
                return not method or method.startswith("__") or method == "forward" or f".{method}" in self.names
            module = module.rpartition(".")[0]
        return False

    def chooses(self, group: str, name: str) -> bool:
        """Whether it writes ``group=name`` or ``group=[other,name]``, or both halves of f"{group}={name}"."""
        choice = re.compile(rf"{group}=\[?(?:\w+,)*{name}\b")
        halves = name in self.texts and any(text.endswith((f"{group}=", f"{group}=[")) for text in self.texts)
        return halves or any(choice.search(text) for text in self.texts)


def registered(root: Path) -> dict[str, list[tuple[str, str]]]:
    """Target -> (group, name), of every ``register(group, name, config, target)`` in the schema."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted((root / "supernet" / "schema").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Name(id="register"),
                    args=[
                        ast.Constant(value=str(group)),
                        ast.Constant(value=str(name)),
                        _,
                        ast.Constant(value=str(to)),
                    ],
                ):
                    found.setdefault(to, []).append((group, name))
    return found


def tests(root: Path) -> Iterator[Test]:
    """All test functions."""
    for path in sorted((root / "tests").glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = _imports(tree)
        parts = {name: node for node in tree.body for name in _defines(node)}
        for name, node in parts.items():
            if name.startswith("test") and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                names, texts = _names(name, parts, imported)
                yield Test(f"{path.name}::{name}", frozenset(names), frozenset(texts))


def _imports(tree: ast.Module) -> dict[str, str]:
    """Local name -> dotted name, of what is imported from the project anywhere in the file."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "supernet":
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            ours = [a for a in node.names if a.name.split(".")[0] == "supernet"]
            found |= {a.asname or "supernet": a.name if a.asname else "supernet" for a in ours}
    return found


def _defines(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Assign():
            return [t.id for t in node.targets if isinstance(t, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _names(start: str, parts: dict[str, ast.stmt], imported: dict[str, str]) -> tuple[set[str], set[str]]:
    """What a top-level name uses, through the other top-level names of its file: dotted names, and texts."""
    found: set[str] = set()
    texts: set[str] = set()
    seen, todo = {start}, [start]
    while todo:
        for node in ast.walk(parts[todo.pop()]):
            local = node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else ""
            if local in parts and local not in seen:
                seen.add(local)
                todo.append(local)
            if local in imported:
                found.add(imported[local])
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
            match node:
                case ast.Subscript(
                    value=ast.Name(id="PARTS"), slice=ast.Tuple(elts=[ast.Constant(value=str(group)), _])
                ):
                    texts.add(f"{group}=")
            if isinstance(node, ast.Attribute):
                found.add(f".{node.attr}")
                found.add(_dotted(node, imported))
    return found, texts


def _dotted(node: ast.expr, imported: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, imported)}.{node.attr}"
    return imported.get(node.id, "?") if isinstance(node, ast.Name) else "?"


def collect(root: Path) -> tuple[list[Symbol], list[str]]:
    """The symbols with addresses, with their tests, and what is wrong with docstrings that have none but should."""
    cited, wrong = [], []
    every, parts = list(tests(root)), registered(root)
    for symbol in symbols(root):
        if symbol.addresses:
            symbol.parts = parts.get(f"{symbol.module}:{symbol.name}", [])
            symbol.tests = [test.name for test in every if test.covers(symbol)]
            cited.append(symbol)
        if (text := deviation(symbol.docstring)) is not None:
            wrong.append(
                f"{symbol.file}:{symbol.line} {symbol.name}: {text!r} is no address; write it as "
                f"'Name (arXiv:NNNN.NNNNN), eq. 7' (or section, algorithm, appendix, table, figure)"
            )
    written = {(address.source, address.place) for symbol in cited for address in symbol.addresses}
    wrong += [f"{CHECKED}: no docstring has {place} of {source}" for source, place in checked(root) - written]
    return cited, wrong


def checked(root: Path) -> set[tuple[str, str]]:
    """(source, place) of the numbers that were compared with the text of the paper."""
    return {(source, place) for source, paper in _checked(root).items() for place in paper["places"]}


def _checked(root: Path) -> dict[str, dict[str, Any]]:
    path = root / CHECKED
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def render(cited: list[Symbol], root: Path, *, lines: bool = False) -> str:
    """The page; ``lines`` adds them to files, which would make the page stale with every edit above."""
    sure = checked(root)
    papers: dict[str, list[tuple[Address, Symbol]]] = {}
    names: dict[str, set[str]] = {}
    for symbol in cited:
        for address in symbol.addresses:
            papers.setdefault(address.source, []).append((address, symbol))
            names.setdefault(address.source, set()).add(address.paper)
    parts = [
        "# Where each equation lives",
        "Made by `python tools/equations.py` from the docstrings of `supernet/`; do not edit. A test belongs to a "
        "function, or a part, that it names. A docstring gives the formula, and says where the published code differs.",
        "A number with a question mark is from memory: it was not compared with the text of the paper, and versions of "
        f"a paper differ. {_balance(cited, sure)}",
    ]
    without: list[str] = []
    for source in sorted(papers):
        rows = ["| paper says it in | here | tests |", "|---|---|---|"]
        for address, symbol in sorted(papers[source], key=lambda pair: (pair[0].order, pair[1].file, pair[1].line)):
            where = f"`{symbol.file}{f':{symbol.line}' if lines else ''}`"
            here = f"`{symbol.name}`, {where}" if symbol.name else where
            sign = "" if address.place == "paper" or (address.source, address.place) in sure else " ?"
            rows.append(f"| {address.place}{sign} | {here} | {_shown(symbol.tests)} |")
            if not symbol.tests and symbol.name:
                without.append(f"* {address.paper}, {address.place}: {here}")
        title = ", ".join(sorted(names[source]))
        parts += [f"## {title} ([{source}]({link(source)}))", "\n".join(rows)]
    parts += [
        "## Named by no test",
        "They may be reached through the name of their part: `tests/test_methods.py` runs every registered one.",
        "\n".join(without) or "None.",
        "## What numbers were compared with",
        "\n".join(f"* {source}: {paper['with']}" for source, paper in sorted(_checked(root).items())) or "Nothing.",
    ]
    return "\n\n".join(parts) + "\n"


def _balance(cited: list[Symbol], sure: set[tuple[str, str]]) -> str:
    """How many numbers were compared."""
    every = {(a.source, a.place) for symbol in cited for a in symbol.addresses if a.place != "paper"}
    return f"{len(every & sure)} of {len(every)} numbers were compared."


def link(source: str) -> str:
    """Where a paper can be read."""
    host, _, number = source.partition(":")
    return f"https://arxiv.org/abs/{number}" if host == "arXiv" else f"https://openreview.net/forum?id={number}"


def _shown(names: list[str]) -> str:
    """Tests by file: one by name, more as a number."""
    files: dict[str, list[str]] = {}
    for name in names:
        file, _, test = name.partition("::")
        files.setdefault(file, []).append(test)
    texts = [f"`tests/{file}`: " + (f"`{ts[0]}`" if len(ts) == 1 else f"{len(ts)}") for file, ts in files.items()]
    return "; ".join(texts) or "none"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where the page is stale")
    args = parser.parse_args()
    cited, wrong = collect(ROOT)
    page, text = ROOT / PAGE, render(cited, ROOT)
    stale = not page.exists() or page.read_text(encoding="utf-8") != text
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    if args.check:
        if stale:
            print(f"{PAGE} is stale; run: python tools/equations.py", file=sys.stderr)
        return 1 if stale or wrong else 0
    if stale:
        page.write_text(text, encoding="utf-8")
    print(render(cited, ROOT, lines=True))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
