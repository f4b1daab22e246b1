"""The history of a run: what every epoch came to, in one file from which pictures, warnings and reports are made.

``history.json`` is rewritten after every epoch and whole at any time. It holds the decision groups of the space, and
for each phase (search, derive, retrain) one row per epoch: :class:`Row`. Its contents are in every checkpoint, so a run
that resumes goes on with it exactly; only ``seconds`` and ``times`` differ between two runs of one configuration.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from supernet.spaces.cell_facts import Placed, placed
from supernet.spaces.genotype import Genotype
from supernet.types import Group, Mixing

VERSION = 1
FILE = "history.json"
PHASES = ("search", "derive", "retrain")
DIGITS = 5
"""Of p: enough for pictures, and to see alpha move by its rate."""

Shares = list[list[float | None]]
"""p of N decisions and K options; None where an option does not exist (any more)."""


@dataclass(frozen=True)
class Layout:
    """What the rows' lists mean for one group: K options, N edges as (source state, target state), how many of the
    edges into a state are kept (all where None), options that no genotype has, what is decided ("op", "skip" ...), and
    the names of the N decisions."""

    options: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    keep: int | None
    underivable: tuple[str, ...]
    kind: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """What one kind of cell gained and lost since the epoch before."""

    new: tuple[Placed, ...]
    gone: tuple[Placed, ...]


@dataclass(frozen=True)
class Notice:
    """A warning of the watch that begins, or ends, with an epoch; ``kind`` names it, ``text`` is a sentence."""

    kind: str
    begins: bool
    text: str


@dataclass
class Row:
    """An epoch. ``epoch`` and ``stage`` count from 0, ``step`` is the number of steps done since the phase began,
    ``seconds`` what the phase took so far.

    ``figures`` are all numbers that were recorded (None where not finite), ``times`` those of the machine: seconds of a
    step, images per second, megabytes. ``genotype`` is the one derived from ``p``; it and ``p``, the mean over
    placements, are there where p says what was learnt. ``trained`` counts for sampled paths how often each option was
    trained. ``edges`` are the N weights of edges, where a method has them.
    """

    epoch: int
    step: int
    stage: int = 0
    seconds: float = 0.0
    figures: dict[str, float | None] = field(default_factory=dict)
    times: dict[str, float | None] = field(default_factory=dict)
    genotype: Genotype | None = None
    changed: dict[str, Change] = field(default_factory=dict)
    p: dict[str, Shares] = field(default_factory=dict)
    edges: dict[str, list[float]] = field(default_factory=dict)
    trained: dict[str, list[list[int]]] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """What is there; what is empty is left out."""
        row: dict[str, Any] = {"epoch": self.epoch, "step": self.step, "stage": self.stage}
        row |= {"seconds": round(self.seconds, 3), "figures": self.figures, "times": self.times}
        row |= {} if self.genotype is None else {"genotype": self.genotype.to_json()}
        changed = {kind: {"new": c.new, "gone": c.gone} for kind, c in self.changed.items()}
        notices = [{"kind": n.kind, "begins": n.begins, "text": n.text} for n in self.notices]
        rest = {"changed": changed, "p": self.p, "edges": self.edges, "trained": self.trained, "notices": notices}
        return row | {name: value for name, value in rest.items() if value}


class History:
    """The rows of a run by phase, in the order of their epochs."""

    def __init__(self) -> None:
        self.groups: dict[str, Layout] = {}
        self.rows: dict[str, list[Row]] = {}
        self._texts: dict[str, list[str]] = {}  # of the rows that are complete: they are written again and again

    def describe(self, groups: Sequence[Group]) -> None:
        """Say what is chosen between; stages change masks, and none of this."""
        self.groups = {
            g.name: Layout(
                options=g.options,
                edges=tuple(zip(g.sources, g.targets, strict=True)),
                keep=g.keep,
                underivable=tuple(sorted(g.underivable | g.extras)),
                kind=g.kind,
                labels=tuple(g.label(n) for n in range(g.decisions)),
            )
            for g in groups
        }

    def row(self, phase: str, epoch: int, step: int) -> Row:
        """The row of an epoch, to be filled; made where it is not there yet."""
        rows, texts = self.rows.setdefault(phase, []), self._texts.setdefault(phase, [])
        if not rows or rows[-1].epoch < epoch:
            rows.append(Row(epoch, step))
        assert rows[-1].epoch == epoch, "an epoch that is over is not changed"
        del texts[len(rows) - 1 :]
        return rows[-1]

    def derived(self, phase: str, epoch: int, step: int, p: Mixing | None, genotype: Genotype | None) -> None:
        """Keep how the architecture stands after an epoch, and what changed in it."""
        row = self.row(phase, epoch, step)
        row.genotype, rows = genotype, self.rows[phase]
        before = rows[-2].genotype if len(rows) > 1 else None
        row.changed = {} if genotype is None or before is None else changes(before, genotype)
        for name, group in ({} if p is None else p).items():
            shares_NK = group.op_LNK.float().mean(dim=0).tolist()
            row.p[name] = [
                [round(share, DIGITS) if exists else None for share, exists in zip(shares, mask, strict=True)]
                for shares, mask in zip(shares_NK, group.mask_NK, strict=True)
            ]
            if group.edge_LN is not None:
                row.edges[name] = [round(weight, DIGITS) for weight in group.edge_LN.float().mean(dim=0).tolist()]

    def to_text(self) -> str:
        """The file: JSON with a line for each row."""
        groups = {name: asdict(group) for name, group in self.groups.items()}
        phases = [f'"{phase}": [\n' + ",\n".join(texts) + "\n]" for phase, texts in self._all_texts().items()]
        return ",\n".join([f'{{"version": {VERSION}', f'"groups": {json.dumps(groups)}', *phases]) + "}\n"

    def _all_texts(self) -> dict[str, list[str]]:
        for phase, rows in self.rows.items():
            texts = self._texts.setdefault(phase, [])
            texts += [json.dumps(row.to_json(), allow_nan=False) for row in rows[len(texts) :]]
        return self._texts


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def changes(before: Genotype, after: Genotype) -> dict[str, Change]:
    """What the cells gained and lost, for the kinds that changed."""
    found = {}
    for kind, cell in after.cells.items():
        old, now = Counter(placed(before.cells.get(kind))), Counter(placed(cell))
        if old != now:
            found[kind] = Change(tuple((now - old).elements()), tuple((old - now).elements()))
    return found
