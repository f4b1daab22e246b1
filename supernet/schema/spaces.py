"""Search spaces."""

from __future__ import annotations

from dataclasses import dataclass

from supernet.registry import register
from supernet.schema.fields import listed, ranged


@dataclass
class DartsConfig:
    """The DARTS cell space."""

    name: str = "darts"
    nodes: int = ranged(4, ge=1)
    reductions: int = ranged(2, ge=0)
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


register("space", "darts", DartsConfig, "supernet.spaces.darts:from_config")


@dataclass
class Nasbench201Config:
    """The cell space of NAS-Bench-201. ``channels`` and ``cells`` of search and retrain are those of its first stage
    (C) and the number in each of its three stages (N)."""

    name: str = "nasbench201"
    operations: list[str] = listed("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", unique=True)


register("space", "nasbench201", Nasbench201Config, "supernet.spaces.nasbench201:from_config")
