"""Derivations: how the search becomes one architecture."""

from __future__ import annotations

from dataclasses import dataclass

from supernet.registry import register


@dataclass
class Top2Config:
    """Per node, the two incoming edges whose best operation other than ``none`` is strongest (DARTS, section 2.4)."""

    name: str = "top2"


register("derive", "top2", Top2Config, "supernet.derive.top2:Top2")
