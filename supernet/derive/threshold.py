"""The derivation of FairDARTS."""

from __future__ import annotations

from dataclasses import replace

from supernet.errors import UserError
from supernet.interfaces import Derivation, SearchSpace
from supernet.schema.derivations import ThresholdConfig
from supernet.spaces.genotype import CellGenotype, Genotype
from supernet.types import Group, GroupMixing, Mixing


class Threshold(Derivation):
    """FairDARTS (arXiv:1911.12126), section 4.2: every node keeps at most two edges (as the group says), each with its
    strongest operation, and of these only what reaches ``threshold``.

    This is ``threshold_sparse`` of the published code, its default. A node may so lose all its edges; as in the
    published genotypes, it then has no place in the cell's output. Edges that would read such a node are no candidates
    here; there, they take one of the two places. A cell in which nothing reaches the threshold keeps its strongest edge
    from an input, since a child needs one.
    """

    def __init__(self, config: ThresholdConfig, *, seed: int = 0) -> None:
        self.threshold = config.threshold

    def derive(self, p: Mixing, space: SearchSpace) -> Genotype:
        choices = {}
        for group in space.groups:
            if group.keep is None:
                raise UserError(
                    "derive=threshold leaves edges out, and this space keeps all of them; use derive=argmax"
                )
            choices[group.name] = above(p[group.name], replace(group, mask_NK=p[group.name].mask_NK), self.threshold)
        cells = space.genotype(choices).cells
        return Genotype({kind: _without_empty_nodes(cell) for kind, cell in cells.items()})


def above(p: GroupMixing, group: Group, threshold: float) -> list[tuple[int, int]]:
    """The (decision, option) pairs that a group keeps, node by node, strongest first; p is averaged over placements."""
    rows = p.op_LNK.mean(dim=0).tolist()
    best = [max(group.derivable(n), key=rows[n].__getitem__, default=None) for n in range(group.decisions)]
    kept: list[tuple[int, int]] = []
    alive = set(group.sources) - set(group.targets)
    for target in sorted(set(group.targets)):
        found = [
            (-rows[n][k], n, k)
            for n, k in enumerate(best)
            if group.targets[n] == target and group.sources[n] in alive and k is not None and rows[n][k] >= threshold
        ]
        kept += [(n, k) for _, n, k in sorted(found)[: group.keep]]
        if found:
            alive.add(target)
    if kept:
        return kept
    inputs = [(-rows[n][k], n, k) for n, k in enumerate(best) if group.sources[n] in alive and k is not None]
    return [(n, k) for _, n, k in sorted(inputs)[:1]]


def _without_empty_nodes(cell: CellGenotype) -> CellGenotype:
    return replace(cell, concat=tuple(state for state in cell.concat if cell.nodes[state - cell.inputs]))
