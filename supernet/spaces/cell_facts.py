"""What a derived cell is made of, counted along the ways from its inputs to its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from supernet.spaces.cell import build_candidate
from supernet.spaces.genotype import CellGenotype
from supernet.spaces.ops import Norm

SKIP = "skip_connect"
Placed = tuple[int, str, int]
"""An edge of a genotype: (node counted from 0, operation, source state)."""


@cache
def learns(name: str) -> bool:
    """Whether an operation has weights where it does not stride."""
    with torch.device("meta"):
        candidate = build_candidate(name, 2, 1, Norm(affine=False, track=False))
    return any(True for _ in candidate.parameters())


@dataclass(frozen=True)
class CellFacts:
    """``skips`` are all that the cell has; the others are of edges on a way from an input to the output: ``dead`` are
    those that are on none, ``weighted`` how many have weights, ``depth`` the most operations with weights one after
    another."""

    skips: int
    weighted: int
    depth: int
    dead: tuple[Placed, ...]


def facts(cell: CellGenotype, learns: Callable[[str], bool] = learns) -> CellFacts:
    """Count; ``none`` leads nowhere."""
    edges = [(n, op, source) for n, node in enumerate(cell.nodes) for op, source in node if op != "none"]
    reached, used = set(range(cell.inputs)), set(cell.concat)
    for n, _, source in edges:
        reached |= {n + cell.inputs} if source in reached else set()
    for n, _, source in reversed(edges):
        used |= {source} if n + cell.inputs in used else set()
    live = [(n, op, source) for n, op, source in edges if source in reached and n + cell.inputs in used]
    depth = dict.fromkeys(range(cell.inputs + len(cell.nodes)), 0)
    for n, op, source in live:
        depth[n + cell.inputs] = max(depth[n + cell.inputs], depth[source] + learns(op))
    return CellFacts(
        skips=sum(op == SKIP for _, op, _ in edges),
        weighted=sum(learns(op) for _, op, _ in live),
        depth=max(depth[state] for state in cell.concat),
        dead=tuple(edge for edge in edges if edge not in live),
    )


def placed(cell: CellGenotype | None) -> list[Placed]:
    """The edges of a cell with the nodes that they feed."""
    return [] if cell is None else [(n, op, source) for n, edges in enumerate(cell.nodes) for op, source in edges]
