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
