"""From the edges of a cell back to the decisions that they answer."""

from __future__ import annotations

from supernet.errors import UserError
from supernet.spaces.genotype import Genotype
from supernet.types import Group


def edge_choices(genotype: Genotype, group: Group, kind: str) -> list[tuple[int, int]]:
    """The (decision, option) pairs of ``group`` that the cell ``kind`` has chosen, in order of decisions.

    Raises UserError for an edge that is no decision of the group, or an operation that it has not.
    """
    cell = genotype.cells.get(kind)
    if cell is None:
        raise UserError(f"genotype: there is no cell of kind {kind!r}, about which this space decides")
    place = {edge: n for n, edge in enumerate(zip(group.sources, group.targets, strict=True))}
    pairs = []
    for target, node in enumerate(cell.nodes, start=cell.inputs):
        for operation, source in node:
            n = place.get((source, target))
            if n is None or operation not in group.options:
                raise UserError(
                    f"genotype, {kind}: ({operation}, {source}) into state {target} cannot be chosen in this space",
                    valid=group.options,
                    got=operation,
                )
            pairs.append((n, group.options.index(operation)))
    return sorted(pairs)
