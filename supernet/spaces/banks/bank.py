"""Banks: all edges that leave a state evaluated together, operation kind by operation kind.

The plain modules own all parameters and buffers; a bank refers to them and gathers what it needs in each forward pass,
so that state_dict, optimisers, initialisation and gradients that are None are those of the plain modules. Operations
that no bank knows are called as the modules they are, beside the banked ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from supernet.spaces.banks.features import Features, Group, follow, norms_of, stack_weights
from supernet.spaces.banks.fold import Term, constant, mixture
from supernet.spaces.banks.kinds import recognise
from supernet.spaces.cell import CellEdge, MixedOp
from supernet.types import CellMixing


class BankedFanOut:
    """Evaluates all edges that leave one state as banks: ``fan_out(x_BCHW, p) -> (target, y_BCHW), ...``.

    An object rather than a closure, so that a deep copy of a network refers to the copied modules.
    """

    def __init__(self, edges: Sequence[CellEdge]) -> None:
        self.edges = tuple(edges)
        self.known = [[recognise(op) for op in self._mixed(edge).ops] for edge in edges]

    @staticmethod
    def _mixed(edge: CellEdge) -> MixedOp:
        assert isinstance(edge.module, MixedOp)
        return edge.module

    def __call__(self, x_BCHW: Tensor, p: CellMixing) -> Iterable[tuple[int, Tensor]]:
        groups, others = self._sort(p)
        for edge, k in others:
            y_BCHW = p.op_NK[edge.n, k] * self._mixed(edge).ops[k](x_BCHW)
            yield edge.target, y_BCHW if p.edge_N is None else p.edge_N[edge.n] * y_BCHW
        if groups:
            for row, y_BCHW in evaluate(groups, x_BCHW, p).items():
                yield self.edges[row].target, y_BCHW

    def _sort(self, p: CellMixing) -> tuple[list[Group], list[tuple[CellEdge, int]]]:
        """What is to be evaluated: banked, kind by kind, and the rest."""
        groups: dict[object, Group] = {}
        others = []
        for row, edge in enumerate(self.edges):
            for k in p.options(edge.n):
                if self._mixed(edge).options[k] == "none":
                    continue
                known = self.known[row][k]
                if known is None:
                    others.append((edge, k))
                    continue
                group = groups.setdefault(known.key, Group())
                group.rows.append(row)
                group.options.append((edge.n, k))
                group.known.append(known)
        return list(groups.values()), others


def evaluate(groups: Sequence[Group], x_BCHW: Tensor, p: CellMixing) -> dict[int, Tensor]:
    """The weighted sum of all banked operations for every row that has some."""
    device = x_BCHW.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_BCHW.dtype
    with torch.autocast(device, enabled=False):
        x_BCHW = x_BCHW.to(dtype).contiguous(memory_format=torch.channels_last)
        rows = sorted({row for group in groups for row in group.rows})
        place = {row: i for i, row in enumerate(rows)}
        products = Features(x_BCHW).products(groups)
        terms = [
            Term(tuple(place[row] for row in product.rows), product.shared, product.pointwise, product.normalised)
            for product in products
        ]
        weight_MCC = stack_weights(products)
        p_M = gather_p(p, [option for product in products for option in product.options])
        y, var_MC = mixture(
            terms, len(rows), [product.z for product in products], weight_MCC, p_M, norms_of(products, weight_MCC)
        )
        follow(products, weight_MCC, var_MC)
    return dict(zip(rows, y, strict=True))


def gather_p(p: CellMixing, options: Sequence[tuple[int, int]]) -> Tensor:
    """p of the given (decision, option) pairs, times the weight of the edge where edges have one."""
    columns = p.op_NK.shape[1]
    device = p.op_NK.device
    p_M = p.op_NK.reshape(-1)[constant(tuple(n * columns + k for n, k in options), device)]
    if p.edge_N is None:
        return p_M
    return p_M * p.edge_N[constant(tuple(n for n, _ in options), device)]
