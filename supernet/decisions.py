"""A search space as a sequence of categorical variables: what everything that samples subgraphs speaks.

A group that keeps all its decisions (NAS-Bench-201) has one variable per decision, its option. A group whose nodes
keep k of their incoming edges (DARTS: 2) has, per node, k pairs of variables: which edge, then its option. The edge is
counted among those that the node has not chosen yet, so that every tuple of values is an architecture, and values drawn
uniformly give edges drawn uniformly without replacement.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from supernet.errors import UserError
from supernet.interfaces import SearchSpace
from supernet.spaces.genotype import Genotype
from supernet.types import Group, GroupMixing, Mixing

Values = tuple[int, ...]
"""One value per variable, each below the variable's ``size``."""

Choices = dict[str, list[tuple[int, int]]]
"""The chosen (decision, option) pairs of every group."""


@dataclass(frozen=True)
class Variable:
    """One categorical variable. ``kind`` is "input" (an edge of ``node``) or "op"; ``labels`` name its values."""

    name: str
    group: str
    kind: str
    node: int
    labels: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.labels)


class Decisions:
    """The variables of a space, and what values of them mean."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.groups = {group.name: group for group in space.groups}
        self.variables = tuple(v for group in space.groups for v in _variables(group))

    @property
    def count(self) -> int:
        """How many tuples of values there are; where nodes choose edges, several are one architecture."""
        return math.prod(v.size for v in self.variables)

    def random(self, generator: torch.Generator) -> Values:
        """Uniform values."""
        return tuple(int(torch.randint(v.size, (), generator=generator)) for v in self.variables)

    def neighbours(self, values: Values) -> list[Values]:
        """All values that differ in one variable."""
        return [
            (*values[:i], value, *values[i + 1 :])
            for i, variable in enumerate(self.variables)
            for value in range(variable.size)
            if value != values[i]
        ]

    def mutate(self, values: Values, generator: torch.Generator, rate: float) -> Values:
        """Redraw every variable with probability ``rate``, and at least one."""
        redraw = torch.rand(len(values), generator=generator) < rate
        redraw[int(torch.randint(len(values), (), generator=generator))] = True
        fresh = self.random(generator)
        return tuple(new if again else old for old, new, again in zip(values, fresh, redraw.tolist(), strict=True))

    def choices(self, values: Sequence[int]) -> Choices:
        """The (decision, option) pairs that values mean."""
        assert len(values) == len(self.variables)
        rest = iter(values)
        return {name: _decode(group, rest) for name, group in self.groups.items()}

    def genotype(self, values: Sequence[int]) -> Genotype:
        """The architecture that values mean; equal architectures are equal genotypes."""
        return self.space.genotype({name: sorted(pairs) for name, pairs in self.choices(values).items()})

    def mixing(self, values: Sequence[int], device: torch.device) -> Mixing:
        """One-hot p of an architecture: what is not chosen is masked out, so that it is not evaluated."""
        choices = self.choices(values)
        return Mixing({name: _one_hot(group, choices[name], device) for name, group in self.groups.items()})


def _nodes(group: Group) -> list[tuple[int, list[int]]]:
    """(node, its decisions that have an option), in order."""
    return [
        (node, [n for n in range(group.decisions) if group.targets[n] == node and group.derivable(n)])
        for node in sorted(set(group.targets))
    ]


def _variables(group: Group) -> list[Variable]:
    if group.keep is None:
        return [
            Variable(f"{group.name}/{group.label(n)}", group.name, "op", group.targets[n], _labels(group, n))
            for n in range(group.decisions)
            if group.derivable(n)
        ]
    variables = []
    for node, edges in _nodes(group):
        # An op's value counts the options of whichever edge is chosen, so all edges need as many.
        if len({len(group.derivable(n)) for n in edges}) > 1:
            raise UserError(
                f"space: the edges into node {node} of the {group.name} cell differ in their number of operations; to "
                "sample subgraphs, give all of them as many"
            )
        for i in range(min(group.keep, len(edges))):
            inputs = tuple(str(j) for j in range(len(edges) - i))
            variables.append(Variable(f"{group.name}/{node}/input{i}", group.name, "input", node, inputs))
            variables.append(Variable(f"{group.name}/{node}/op{i}", group.name, "op", node, _labels(group, edges[0])))
    return variables


def _labels(group: Group, n: int) -> tuple[str, ...]:
    """Names of the options of decision n; where edges have options of their own, of the first edge."""
    return tuple(group.options[k] for k in group.derivable(n))


def _decode(group: Group, rest: Iterator[int]) -> list[tuple[int, int]]:
    if group.keep is None:
        return [(n, group.derivable(n)[next(rest)]) for n in range(group.decisions) if group.derivable(n)]
    pairs = []
    for _, edges in _nodes(group):
        left = list(edges)
        for _ in range(min(group.keep, len(edges))):
            n = left.pop(next(rest))
            pairs.append((n, group.derivable(n)[next(rest)]))
    return pairs


def _one_hot(group: Group, pairs: Sequence[tuple[int, int]], device: torch.device) -> GroupMixing:
    chosen = set(pairs)
    mask_NK = tuple(tuple((n, k) in chosen for k in range(len(group.options))) for n in range(group.decisions))
    return GroupMixing(torch.tensor([mask_NK], dtype=torch.float32, device=device), mask_NK)
