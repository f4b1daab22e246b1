"""Cells as written by NAS-Bench-201 (arXiv:2001.00326): ``|op~source|+|op~source|op~source|+...``, node by node."""

from __future__ import annotations

import re
import reprlib
from typing import TYPE_CHECKING, Any

from supernet.errors import UserError

if TYPE_CHECKING:
    from supernet.spaces.genotype import CellGenotype

KIND = "cell"
"""What the one cell of such a genotype is called."""

_NODE = re.compile(r"\|(?:[^|~+\s]+~[0-9]{1,3}\|)+")


def read_arch_string(text: str, where: str) -> dict[str, Any]:
    """The genotype in JSON form: one cell with one input, whose last node is its output."""
    nodes = []
    for n, node in enumerate(text.strip().split("+")):
        if not _NODE.fullmatch(node):
            raise UserError(f"{where}, node {n}: expected |OPERATION~STATE|...|, got {reprlib.repr(node)}")
        edges = [edge.split("~") for edge in node.strip("|").split("|")]
        nodes.append([[operation, int(source)] for operation, source in edges])
    return {KIND: nodes, f"{KIND}_concat": [len(nodes)], f"{KIND}_inputs": 1}


def write_arch_string(kind: str, cell: CellGenotype) -> str | None:
    """Undo :func:`read_arch_string`; None for a cell that cannot be written so."""
    if (kind, cell.inputs, cell.concat) != (KIND, 1, (len(cell.nodes),)):
        return None
    nodes = ["|" + "".join(f"{operation}~{source}|" for operation, source in node) for node in cell.nodes]
    return "+".join(nodes) if all(_NODE.fullmatch(node) for node in nodes) else None
