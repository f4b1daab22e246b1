"""Relaxations: how alpha becomes p."""

from __future__ import annotations

from dataclasses import dataclass

from supernet.registry import register


@dataclass
class SoftmaxConfig:
    """p = softmax(alpha) over the options of a decision (DARTS, eq. 2)."""

    name: str = "softmax"


register("relaxation", "softmax", SoftmaxConfig, "supernet.relaxations:Softmax")
