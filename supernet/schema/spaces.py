"""Search spaces."""

from __future__ import annotations

from dataclasses import dataclass

from supernet.errors import UserError
from supernet.registry import register
from supernet.schema.fields import choice, listed, ranged

MAX_DEPTH, MAX_KERNEL, MAX_WIDTH = 100, 31, 100.0
"""Of a layer, or stage, of a chain."""

MAX_REDUCTIONS = 10
"""Of a network of cells: the images must have 1,025 pixels a side then, and the channels are 1,024 times the first."""


@dataclass
class DartsConfig:
    """The DARTS cell space. ``normal_edges`` and ``reduce_edges`` name the operations of each edge, which are all of
    ``operations`` where they are empty; edges stand in the published order, 2<-0, 2<-1, 3<-0, 3<-1, 3<-2, 4<-0, ..."""

    name: str = "darts"
    nodes: int = ranged(4, ge=1)
    reductions: int = ranged(2, ge=0, le=MAX_REDUCTIONS)
    stem_multiplier: int = ranged(3, ge=1)
    operations: list[str] = listed(
        "none",
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
        unique=True,
    )
    normal_edges: list[list[str]] = listed()
    reduce_edges: list[list[str]] = listed()

    def __post_init__(self) -> None:
        for kind in ("normal", "reduce"):
            rows: list[list[str]] = getattr(self, f"{kind}_edges")
            count = self.nodes * (self.nodes + 3) // 2
            if rows and len(rows) != count:
                raise UserError(
                    f"space.{kind}_edges has {len(rows)} edges, and space.nodes={self.nodes} makes {count}: give each "
                    "its operations, or none for all of them"
                )
            for n, row in enumerate(rows):
                _check_edge(f"space.{kind}_edges[{n}]", row, self.operations)


def _check_edge(key: str, row: list[str], operations: list[str]) -> None:
    text = f"{key}=[{','.join(row)}]"
    for name in row:
        if name not in operations:
            raise UserError(f"{text}: {name!r} is not among space.operations", valid=operations, got=name)
    if len(set(row)) < len(row):
        raise UserError(f"{text}: an edge has an operation once")
    if set(row) <= {"none"}:
        raise UserError(f"{text}: an edge needs an operation other than none", valid=operations)


register("space", "darts", DartsConfig, "supernet.spaces.darts:from_config")


@dataclass
class Nasbench201Config:
    """The cell space of NAS-Bench-201, whose cell has 4 ``states``: n of them make n (n - 1) / 2 edges. ``channels``
    and ``cells`` of search and retrain are those of its first stage (C) and the number in each of its three stages (N).
    """

    name: str = "nasbench201"
    states: int = ranged(4, ge=3)
    operations: list[str] = listed("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", unique=True)


register("space", "nasbench201", Nasbench201Config, "supernet.spaces.nasbench201:from_config")


@dataclass
class EnasMacroConfig:
    """The macro space of ENAS (arXiv:1802.03268). ``cells`` of search and retrain, which must be the same, are its
    layers: 12, as published."""

    name: str = "enas_macro"
    operations: list[str] = listed(
        "enas_conv_3x3",
        "enas_sep_conv_3x3",
        "enas_conv_5x5",
        "enas_sep_conv_5x5",
        "enas_avg_pool_3x3",
        "enas_max_pool_3x3",
        unique=True,
    )
    child_growth: int = ranged(
        2, ge=1
    )  # of the child's channels where the image halves; the supernet's stay, as published
    search_dropout: float = ranged(0.1, ge=0, lt=1)  # before the classifier; published code
    child_dropout: float = ranged(0.5, ge=0, lt=1)  # published code


register("space", "enas_macro", EnasMacroConfig, "supernet.spaces.enas_macro:from_config")


@dataclass
class ChainConfig:
    """Plain convolutional networks. ``cells`` of search and retrain, which must be the same, are its stages;
    ``channels`` are those of the first stage, and double from one to the next."""

    name: str = "chain"
    depths: list[int] = listed(1, 2, 3, unique=True, ge=1)  # layers of a stage
    widths: list[float] = listed(0.25, 0.5, 1.0, unique=True, ge=0.01)  # of the channels of a stage
    kernels: list[int] = listed(3, 5, unique=True, ge=1)  # odd
    activations: list[str] = listed("relu", "gelu", "silu", unique=True)
    pools: list[str] = listed("max", "avg", "stride", unique=True)
    inits: list[str] = listed("kaiming_normal", "xavier_uniform", "orthogonal", unique=True)
    connections: list[str] = listed("plain", "residual", unique=True)
    scope: str = choice("layer", "layer", "stage", "network")  # what decides together, apart from depths and pools

    def __post_init__(self) -> None:
        limits = {"depths": MAX_DEPTH, "kernels": MAX_KERNEL, "widths": MAX_WIDTH}
        for name, most in limits.items():
            for value in getattr(self, name):
                if value > most:
                    raise UserError(f"space.{name}: {value:g} is too large; it must be at most {most:g}")
        for size in self.kernels:
            if size % 2 == 0:
                raise UserError(f"space.kernels: {size} is even, and a kernel has a centre; choose odd sizes")
        for width in self.widths:
            if float(f"{width:.4g}") != width:
                raise UserError(f"space.widths: {width} has too many digits; round it to four of them")


register("space", "chain", ChainConfig, "supernet.spaces.chain:from_config")
