"""The derivation that keeps every decision."""

from __future__ import annotations

from dataclasses import replace

from supernet.derive.top2 import strongest
from supernet.interfaces import Derivation, SearchSpace
from supernet.schema.derivations import ArgmaxConfig
from supernet.spaces.genotype import Genotype
from supernet.types import Group, GroupMixing, Mixing


class Argmax(Derivation):
    """Every decision keeps its strongest derivable option: SNAS (arXiv:1812.09926) and NAS-Bench-201
    (arXiv:2001.00326), section 2.1, where ``none`` is an option like the others and written into the genotype.

    Where ``none`` cannot be written (DARTS), ``leave_out`` drops the edges on which it is stronger than the rest, as
    the child of SNAS has no such edge; the strongest edge of a node stays, so that no node is without input. Without
    it, all edges stay.
    """

    def __init__(self, config: ArgmaxConfig, *, seed: int = 0) -> None:
        self.leave_out = config.leave_out

    def derive(self, p: Mixing, space: SearchSpace) -> Genotype:
        return space.genotype({group.name: self._choose(p[group.name], group) for group in space.groups})

    def _choose(self, p: GroupMixing, group: Group) -> list[tuple[int, int]]:
        kept = strongest(p, replace(group, keep=None, mask_NK=p.mask_NK))  # of every node the strongest edge first
        if not self.leave_out:
            return kept
        rows = p.op_LNK.mean(dim=0).tolist()
        barred = [k for k, name in enumerate(group.options) if name in group.underivable]
        firsts = {group.targets[n]: n for n, _ in reversed(kept)}
        return [
            (n, k)
            for n, k in kept
            if firsts[group.targets[n]] == n or all(rows[n][k] >= rows[n][b] for b in barred if p.mask_NK[n][b])
        ]
