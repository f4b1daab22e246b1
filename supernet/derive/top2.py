"""The derivation of DARTS."""

from __future__ import annotations

from dataclasses import replace

from supernet.interfaces import Derivation, SearchSpace
from supernet.schema.derivations import Top2Config
from supernet.spaces.genotype import Genotype
from supernet.types import Group, GroupMixing, Mixing


class Top2(Derivation):
    """DARTS (arXiv:1806.09055), section 2.4: the strength of an edge is its largest p among the operations other than
    ``none``; every node keeps its strongest edges (two, as the group says), each with its strongest operation.

    ``none`` is not a candidate but takes its share of p. Equal strengths fall to the earlier edge or operation. Within
    a node, edges are ordered by strength as in the published code. A group may keep all edges (``keep`` None).
    """

    def __init__(self, config: Top2Config, *, seed: int = 0) -> None:
        pass

    def derive(self, p: Mixing, space: SearchSpace) -> Genotype:
        return top2(p, space)


def top2(p: Mixing, space: SearchSpace) -> Genotype:
    """The genotype of the strongest edges and operations."""
    # The mask of p and not of the space: a search may have narrowed it.
    groups = [replace(group, mask_NK=p[group.name].mask_NK) for group in space.groups]
    return space.genotype({group.name: strongest(p[group.name], group) for group in groups})


def strongest(p: GroupMixing, group: Group) -> list[tuple[int, int]]:
    """The (decision, option) pairs that a group keeps, node by node, strongest first; p is averaged over placements."""
    op_NK = p.op_LNK.mean(dim=0)
    if p.edge_LN is not None:
        op_NK = op_NK * p.edge_LN.mean(dim=0)[:, None]
    rows = op_NK.tolist()
    kept: list[tuple[int, int]] = []
    for target in sorted(set(group.targets)):
        candidates = []
        for n in (n for n in range(group.decisions) if group.targets[n] == target):
            options = group.derivable(n)
            if options:
                best = max(options, key=rows[n].__getitem__)  # the first of equals
                candidates.append((rows[n][best], n, best))
        candidates.sort(key=lambda c: (-c[0], c[1]))
        kept += [(n, k) for _, n, k in candidates[: group.keep]]
    return kept
