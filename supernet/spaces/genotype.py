"""The discrete result of a search on a cell space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Edge = tuple[str, int]
"""(operation, source state), as the community writes it."""


@dataclass(frozen=True)
class CellGenotype:
    """One cell: the edges into every node, in node order, and the states that are concatenated into its output."""

    nodes: tuple[tuple[Edge, ...], ...]
    concat: tuple[int, ...]

    @property
    def edges(self) -> list[Edge]:
        """All edges, flat."""
        return [edge for node in self.nodes for edge in node]


@dataclass(frozen=True)
class Genotype:
    """The cells of a network by kind ("normal", "reduce"), states 0 and 1 being the outputs of the two cells before."""

    cells: Mapping[str, CellGenotype]
