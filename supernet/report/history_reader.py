"""Reading ``history.json`` back: nothing in it is trusted."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from supernet.errors import UserError
from supernet.report.history import FILE, PHASES, VERSION, Change, History, Layout, Notice, Row
from supernet.spaces.cell_facts import Placed
from supernet.spaces.genotype import Genotype

T = TypeVar("T")

MAX_BYTES = 200_000_000
"""A thousand epochs of the largest space are a fiftieth of that."""


def read_history(run_dir: Path) -> History:
    """The history of the run in a directory. Raises UserError where there is none that can be read."""
    path = run_dir / FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the directory of a run, of which at least one epoch is over")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes: at most {MAX_BYTES:,} are read")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}): restore it, or resume the run") from error
    return parse_history(text, str(path))


def parse_history(text: str, where: str = FILE) -> History:
    """Undo :meth:`History.to_text`; ``where`` is what a UserError begins with."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where} is no JSON document ({reprlib.repr(str(error))}): resume the run to write it"
        ) from None
    version = document.get("version") if isinstance(document, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise UserError(f"{where} is not the history of a run: it has no version")
    if version != VERSION:
        raise UserError(f"{where} is of version {version}, and version {VERSION} is read here: use that supernet's own")
    history = History()
    try:
        history.groups = _dict(document["groups"], _layout)
    except (KeyError, ValueError) as error:
        raise UserError(f"{where} is damaged: {_why(error, 'groups')}") from None
    for phase in PHASES:
        _read_phase(history, phase, document.get(phase, []), where)
    return history


def _read_phase(history: History, phase: str, rows: Any, where: str) -> None:
    if not isinstance(rows, list):
        raise UserError(f"{where} is damaged: {phase} is a list of rows, not {reprlib.repr(rows)}")
    for index, written in enumerate(rows):
        place = f"{phase}, row {index}"
        try:
            row = _row(written, f"{where}, {place}")
            _check_sizes(row, history.groups)
        except (KeyError, ValueError) as error:
            raise UserError(f"{where} is damaged: {_why(error, place)}") from None
        known = history.rows.setdefault(phase, [])
        if known and row.epoch <= known[-1].epoch:
            raise UserError(f"{where} is damaged: {place}: its epoch {row.epoch} is there already")
        known.append(row)


def _why(error: Exception, place: str) -> str:
    return f"{place}: {error} is missing" if isinstance(error, KeyError) else f"{place}: {error}"


def _row(written: Any, where: str) -> Row:
    row = _dict(written, lambda value: value)
    read = Row(_count(row["epoch"]), _count(row["step"]), _count(row["stage"]), _number(row["seconds"]))
    read.figures, read.times = _dict(row["figures"], _maybe), _dict(row["times"], _maybe)
    if "genotype" in row:
        read.genotype = Genotype.from_json(row["genotype"], f"{where}, genotype")
    read.changed = _dict(row.get("changed", {}), lambda c: Change(_placed(c, "new"), _placed(c, "gone")))
    read.p = _dict(row.get("p", {}), lambda table: _list(table, lambda line: _list(line, _maybe)))
    read.edges = _dict(row.get("edges", {}), lambda weights: _list(weights, _number))
    read.trained = _dict(row.get("trained", {}), lambda table: _list(table, lambda line: _list(line, _count)))
    read.notices = _list(row.get("notices", []), _notice)
    return read


def _check_sizes(row: Row, groups: dict[str, Layout]) -> None:
    sizes = [(name, [len(line) for line in table]) for name, table in row.p.items()]
    sizes += [(name, [len(line) for line in table]) for name, table in row.trained.items()]
    for name, widths in sizes:
        group = groups[name]
        if widths != [len(group.options)] * len(group.edges):
            raise ValueError(f"{name} has {len(group.edges)} decisions of {len(group.options)} options")
    for name, weights in row.edges.items():
        if len(weights) != len(groups[name].edges):
            raise ValueError(f"{name} has {len(groups[name].edges)} edges")


def _layout(written: Any) -> Layout:
    group = _dict(written, lambda value: value)
    return Layout(
        options=tuple(_list(group["options"], _text)),
        edges=tuple(_list(group["edges"], _edge)),
        keep=None if group["keep"] is None else _count(group["keep"]),
        underivable=tuple(_list(group["underivable"], _text)),
        kind=_text(group["kind"]),
        labels=tuple(_list(group["labels"], _text)),
    )


def _notice(written: Any) -> Notice:
    notice = _dict(written, lambda value: value)
    if not isinstance(notice["begins"], bool):
        raise ValueError(f"a notice begins or not, {reprlib.repr(notice['begins'])} is neither")
    return Notice(_text(notice["kind"]), notice["begins"], _text(notice["text"]))


def _edge(written: Any) -> tuple[int, int]:
    source, target = _sized(written, 2)
    return _count(source), _count(target)


def _placed(written: Any, key: str) -> tuple[Placed, ...]:
    def one(edge: Any) -> Placed:
        node, operation, source = _sized(edge, 3)
        return _count(node), _text(operation), _count(source)

    return tuple(_list(_dict(written, lambda value: value)[key], one))


def _sized(written: Any, length: int) -> Sequence[Any]:
    if not isinstance(written, list) or len(written) != length:
        raise ValueError(f"expected {length} values, got {reprlib.repr(written)}")
    return written


def _dict(written: Any, read: Callable[[Any], T]) -> dict[str, T]:
    if not isinstance(written, dict):
        raise ValueError(f"expected keys and values, got {reprlib.repr(written)}")
    return {key: read(value) for key, value in written.items()}


def _list(written: Any, read: Callable[[Any], T]) -> list[T]:
    if not isinstance(written, list):
        raise ValueError(f"expected a list, got {reprlib.repr(written)}")
    return [read(value) for value in written]


def _text(written: Any) -> str:
    if not isinstance(written, str):
        raise ValueError(f"expected a text, got {reprlib.repr(written)}")
    return written


def _number(written: Any) -> float:
    if not isinstance(written, (int, float)) or isinstance(written, bool) or not math.isfinite(written):
        raise ValueError(f"expected a finite number, got {reprlib.repr(written)}")
    return written


def _maybe(written: Any) -> float | None:
    return None if written is None else _number(written)


def _count(written: Any) -> int:
    if not isinstance(written, int) or isinstance(written, bool) or written < 0:
        raise ValueError(f"expected a number from 0, got {reprlib.repr(written)}")
    return written
