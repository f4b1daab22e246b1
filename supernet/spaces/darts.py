"""The cell space of DARTS (arXiv:1806.09055), section 2.1: normal and reduction cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.data.images import check_size
from supernet.errors import UserError
from supernet.interfaces import SearchSpace
from supernet.runtime.compute import MEMORY_FORMATS
from supernet.schema.spaces import DartsConfig
from supernet.spaces.banks import BankedFanOut, Prepare
from supernet.spaces.cell import (
    CHILD,
    PLAIN,
    Cell,
    CellEdge,
    CellStack,
    Engine,
    Frame,
    MixedOp,
)
from supernet.spaces.edge_choices import edge_choices
from supernet.spaces.genotype import CellGenotype, Edge, Genotype, validate
from supernet.spaces.ops import DARTS_OPERATIONS, OPERATIONS, Norm
from supernet.spaces.partial import PartialFanOut, check_parts
from supernet.types import Group, Mixing

ENGINES = {
    "compiled": Engine(partial(BankedFanOut, fuse=True), Prepare),
    "banked": Engine(BankedFanOut),
    "plain": PLAIN,
}


@dataclass(frozen=True)
class DartsSpace(SearchSpace):
    """A description of the space; edit it with ``dataclasses.replace`` before building.

    Each of ``nodes`` intermediate nodes of a cell reads all states before it through one mixed edge each, so with 4
    nodes a cell has 14 edges; the output is the concatenation of the nodes. In the supernet, 1 / ``partial`` of the
    channels go through the operations, and every edge also has the operations in ``extras`` (see :class:`Group`). An
    edge has all ``operations``, or those in its row of ``normal_edges`` or ``reduce_edges``.
    """

    in_channels: int
    classes: int
    nodes: int = 4
    operations: tuple[str, ...] = DARTS_OPERATIONS
    reductions: int = 2
    stem_multiplier: int = 3
    search_channels: int = 16
    search_cells: int = 8
    child_channels: int = 36
    child_cells: int = 20
    auxiliary: bool = True
    statistics: str = "batch"
    engine: str = "banked"
    memory_format: str = "channels_last"
    partial: int = 1
    extras: tuple[str, ...] = ()
    normal_edges: tuple[tuple[str, ...], ...] = ()
    reduce_edges: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        check_parts(self.partial, self.search_channels)
        for name in self.operations:
            if name not in OPERATIONS:
                raise UserError(f"space.operations: no operation is named {name!r}", valid=OPERATIONS, got=name)
        if set(self.operations) <= {"none"}:
            raise UserError("space.operations=[none]: a genotype needs an operation other than none", valid=OPERATIONS)

    def check(self, image: tuple[int, int], *, search: bool) -> None:
        """Refuse depths with fewer reduction cells than asked for, and searches without a kind that the child has."""
        check_size(image, self.reductions)
        cells = {"retrain.cells": self.child_cells} | ({"search.cells": self.search_cells} if search else {})
        for key, count in cells.items():
            if count < self.reductions:
                raise UserError(f"{key}={count}: it must be at least space.reductions={self.reductions}")
        if search and self.search_cells == self.reductions < self.child_cells:
            raise UserError(
                f"search.cells={self.reductions}: with space.reductions={self.reductions} all its cells are reduction "
                f"cells, and retrain.cells={self.child_cells} needs normal ones; set search.cells to at least "
                f"{self.reductions + 1}"
            )

    def check_genotype(self, genotype: Genotype, where: str = "genotype") -> None:
        """Any number of nodes and any registered operation will do, but a cell of each kind that the child needs."""
        validate(genotype, OPERATIONS, where)
        for kind, cell in genotype.cells.items():
            if cell.inputs != 2:
                raise UserError(f"{where}, {kind}: a cell of the DARTS space has 2 inputs, this one has {cell.inputs}")
        for kind in sorted(set(self._child_frame.kinds()) - set(genotype.cells)):
            raise UserError(f"{where}: there is no {kind} cell, which a network of {self.child_cells} cells needs")

    @property
    def groups(self) -> tuple[Group, ...]:
        edges = [(source, target) for target in range(2, 2 + self.nodes) for source in range(target)]
        rows_N = {"normal": self.normal_edges, "reduce": self.reduce_edges}
        kinds = self._search_frame.kinds()
        return tuple(
            Group(
                name=kind,
                options=self.operations + self.extras,
                sources=tuple(source for source, _ in edges),
                targets=tuple(target for _, target in edges),
                placements=kinds.count(kind),
                mask_NK=tuple(self._mask(row) for row in rows_N[kind] or (self.operations,) * len(edges)),
                keep=2,
                underivable=frozenset({"none"}),
                extras=frozenset(self.extras),
            )
            for kind in ("normal", "reduce")
            if kind in kinds
        )

    def _mask(self, row: Sequence[str]) -> tuple[bool, ...]:
        """Which operations an edge has; no edge has the extras of its own."""
        return tuple(name in row for name in self.operations) + (False,) * len(self.extras)

    @property
    def _search_frame(self) -> Frame:
        return Frame(
            self.in_channels,
            self.classes,
            self.search_channels,
            self.search_cells,
            self.reductions,
            self.stem_multiplier,
        )

    @property
    def _child_frame(self) -> Frame:
        return Frame(
            self.in_channels,
            self.classes,
            self.child_channels,
            self.child_cells,
            self.reductions,
            self.stem_multiplier,
        )

    def build_supernet(self) -> Supernet:
        """The over-parameterised network; p must have a group for each kind of cell."""
        return Supernet(self)

    def build_child(self, genotype: Genotype) -> Child:
        """The network of a genotype, with affine batch norm and running statistics."""
        return Child(self, genotype)

    def genotype(self, choices: Mapping[str, Sequence[tuple[int, int]]]) -> Genotype:
        """Genotype of the chosen (decision, option) pairs; within a node in the order given."""
        cells = {}
        for group in self.groups:
            nodes: list[list[Edge]] = [[] for _ in range(self.nodes)]
            for n, k in choices[group.name]:
                nodes[group.targets[n] - 2].append((group.options[k], group.sources[n]))
            cells[group.name] = CellGenotype(tuple(map(tuple, nodes)), tuple(range(2, 2 + self.nodes)))
        return Genotype(cells)

    def choices(self, genotype: Genotype) -> dict[str, list[tuple[int, int]]]:
        """The (decision, option) pairs of every cell that a search decides."""
        return {group.name: edge_choices(genotype, group, group.name) for group in self.groups}


class Supernet(nn.Module):
    """Every candidate of every edge of every cell, mixed by p, which is an argument: the network holds no alpha."""

    def __init__(self, space: DartsSpace) -> None:
        super().__init__()
        frame = space._search_frame
        norm = Norm(affine=False, track=space.statistics == "running")
        groups = {group.name: group for group in space.groups}
        wrap = partial(PartialFanOut, parts=space.partial) if space.partial > 1 else None
        self._memory_format = MEMORY_FORMATS[space.memory_format]

        def build_cell(kind: str, preprocess: tuple[nn.Module, nn.Module], channels: int) -> Cell:
            group, through = groups[kind], channels // space.partial
            edges = [
                CellEdge(n, s, t, MixedOp(group.options, group.built(n), through, _stride(kind, s), norm))
                for n, (s, t) in enumerate(zip(group.sources, group.targets, strict=True))
            ]
            return Cell(preprocess, edges, range(2, 2 + space.nodes), ENGINES[space.engine], wrap)

        self.stack = CellStack(frame, build_cell, norm, concat=dict.fromkeys(groups, space.nodes))
        kinds = frame.kinds()
        self._places = [(kind, kinds[:i].count(kind)) for i, kind in enumerate(kinds)]

    def forward(self, x_BCHW: Tensor, p: Mixing) -> Tensor:
        """``logits_BK`` over classes."""
        x_BCHW = x_BCHW.contiguous(memory_format=self._memory_format)
        outputs = self.stack.features(x_BCHW, [p[kind].at(place) for kind, place in self._places])
        return self.stack.classify(outputs[-1])


class Child(nn.Module):
    """The discrete network of a genotype, with the auxiliary head of DARTS where the space asks for it."""

    def __init__(self, space: DartsSpace, genotype: Genotype) -> None:
        super().__init__()
        frame = space._child_frame
        norm = Norm(affine=True, track=True)
        self._memory_format = MEMORY_FORMATS[space.memory_format]
        space.check_genotype(genotype)

        def build_cell(kind: str, preprocess: tuple[nn.Module, nn.Module], channels: int) -> Cell:
            cell = genotype.cells[kind]
            found = [(op, s, t) for t, node in enumerate(cell.nodes, start=2) for op, s in node]
            edges = [
                CellEdge(n, s, t, OPERATIONS[op].build(channels, _stride(kind, s), norm))
                for n, (op, s, t) in enumerate(found)
            ]
            return Cell(preprocess, edges, cell.concat, CHILD)

        concat = {kind: len(cell.concat) for kind, cell in genotype.cells.items()}
        self.stack = CellStack(frame, build_cell, norm, concat=concat)
        self._auxiliary_at = 2 * frame.cells // 3
        self.auxiliary = (
            AuxiliaryHead(self.stack.widths[self._auxiliary_at], frame.classes) if space.auxiliary else None
        )

    def forward(self, x_BCHW: Tensor, drop_path: float = 0.0) -> Tensor | tuple[Tensor, Tensor]:
        """``logits_BK``; in training ``(logits_BK, auxiliary_BK)`` where there is an auxiliary head."""
        x_BCHW = x_BCHW.contiguous(memory_format=self._memory_format)
        outputs = self.stack.features(x_BCHW, [drop_path] * len(self.stack.cells))
        logits_BK = self.stack.classify(outputs[-1])
        if self.training and self.auxiliary is not None:
            return logits_BK, self.auxiliary(outputs[self._auxiliary_at])
        return logits_BK


class AuxiliaryHead(nn.Module):
    """A second classifier at two thirds of the depth, used in training only.

    Published for feature maps of 8 x 8; here any size: large ones are pooled to 2 x 2 after the published 5 x 5 pool,
    small ones without it, which for 8 x 8 is the published head exactly.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = torch.relu(x_BCHW)
        if min(x_BCHW.shape[2:]) >= 8:
            x_BCHW = F.avg_pool2d(x_BCHW, 5, stride=3, count_include_pad=False)
        x_BCHW = self.features(F.adaptive_avg_pool2d(x_BCHW, 2))
        logits_BK: Tensor = self.classifier(x_BCHW.flatten(1))
        return logits_BK


def _stride(kind: str, source: int) -> int:
    """Edges from the inputs of a reduction cell halve the image."""
    return 2 if kind == "reduce" and source < 2 else 1


def from_config(config: DartsConfig, **sizes: Any) -> DartsSpace:
    """The space that a configuration describes; ``sizes`` are fields of :class:`DartsSpace` that depend on the data."""
    return DartsSpace(
        nodes=config.nodes,
        operations=tuple(config.operations),
        reductions=config.reductions,
        stem_multiplier=config.stem_multiplier,
        normal_edges=tuple(map(tuple, config.normal_edges)),
        reduce_edges=tuple(map(tuple, config.reduce_edges)),
        **sizes,
    )
