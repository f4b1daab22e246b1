"""NAS-Bench-201 (Dong and Yang, ICLR 2020, arXiv:2001.00326) as a table: what each of its 15,625 cells is worth."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from supernet.benchmarks.table import read_table
from supernet.errors import UserError
from supernet.interfaces import Benchmark, SearchSpace
from supernet.schema.benchmarks import Nasbench201TableConfig
from supernet.spaces.arch_string import KIND, write_arch_string
from supernet.spaces.genotype import CellGenotype, Genotype
from supernet.spaces.nasbench201 import EDGES, STATES
from supernet.spaces.ops import NASBENCH201_OPERATIONS


class Nasbench201Table(Benchmark):
    """Answers with all columns of a cell's row, its regret (best minus its own ``metric``) and its rank (1 is best;
    cells of equal accuracy share a rank). Isomorphic cells have rows of their own, as in the benchmark."""

    def __init__(self, config: Nasbench201TableConfig, *, space: SearchSpace) -> None:
        self.metric = config.metric
        self.rows = read_table(Path(config.path), "arch", without=("index", "cell_class"))
        (group,) = space.groups
        missing = next((arch for arch in all_archs(group.options) if arch not in self.rows), None)
        if missing is not None:
            raise UserError(f"benchmark.path={config.path}: the table has no cell {missing}, which the space allows")
        if self.metric not in self.rows[next(iter(self.rows))]:
            raise UserError(f"benchmark.path={config.path}: the table has no column {self.metric}")
        self.values = sorted((row[self.metric] for row in self.rows.values()), reverse=True)

    def answer(self, genotype: Genotype) -> dict[str, float]:
        row = self.rows[arch_of(genotype)]
        own = row[self.metric]
        better = sum(value > own for value in self.values)
        return {"regret": self.values[0] - own, "rank": 1 + better, "cells": len(self.values), **row}

    def sentence(self, values: dict[str, float]) -> str:
        return (
            f"truth: {self.metric} {values[self.metric]:.2f}, regret {values['regret']:.2f}, "
            f"rank {values['rank']:,.0f} of {values['cells']:,.0f}"
        )


def arch_of(genotype: Genotype) -> str:
    """The arch string of a cell, its edges in the order of the table."""
    cell = genotype.cells[KIND]
    nodes = tuple(tuple(sorted(node, key=lambda edge: edge[1])) for node in cell.nodes)
    arch = write_arch_string(KIND, CellGenotype(nodes, cell.concat, cell.inputs))
    assert arch is not None
    return arch


def all_archs(operations: Sequence[str] = NASBENCH201_OPERATIONS) -> Iterator[str]:
    """The arch strings of all cells."""
    nodes = [[source for source, target in EDGES if target == node] for node in range(1, STATES)]
    for chosen in itertools.product(operations, repeat=len(EDGES)):
        rest = iter(chosen)
        yield "+".join("|" + "".join(f"{next(rest)}~{source}|" for source in sources) for sources in nodes)
