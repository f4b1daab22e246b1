"""Random genotypes: the baseline that a search has to beat."""

from __future__ import annotations

import torch

from supernet.interfaces import Derivation, SearchSpace
from supernet.runtime.random import generator
from supernet.schema.derivations import RandomConfig
from supernet.spaces.genotype import Genotype
from supernet.types import Group, Mixing


class Random(Derivation):
    """A random genotype of the space, keyed by the seed, whatever p says: so no search is needed."""

    needs_search = False

    def __init__(self, config: RandomConfig, *, seed: int = 0) -> None:
        self.seed = seed

    def derive(self, p: Mixing, space: SearchSpace) -> Genotype:
        return random_genotype(space, generator(self.seed, "derive/random"))


def random_genotype(space: SearchSpace, generator: torch.Generator) -> Genotype:
    """Draw uniformly: for every node which edges it keeps, and for every kept edge one derivable operation."""
    return space.genotype({group.name: _draw(group, generator) for group in space.groups})


def _draw(group: Group, generator: torch.Generator) -> list[tuple[int, int]]:
    kept = []
    for target in sorted(set(group.targets)):
        edges = [n for n in range(group.decisions) if group.targets[n] == target and group.derivable(n)]
        order = torch.randperm(len(edges), generator=generator).tolist()
        for n in sorted(edges[i] for i in order[: group.keep]):
            options = group.derivable(n)
            kept.append((n, options[int(torch.randint(len(options), (), generator=generator))]))
    return kept
