"""Relaxations: how alpha becomes p."""

from __future__ import annotations

from dataclasses import dataclass

from supernet.registry import register
from supernet.schema.fields import choice, ranged


@dataclass
class TemperatureConfig:
    """A temperature that changes over the search."""

    temperature_start: float = ranged(1.0, gt=0)
    temperature_end: float = ranged(1.0, gt=0)
    anneal: str = choice("linear", "linear", "exponential")  # from start to end, over the whole search


@dataclass
class SoftmaxConfig(TemperatureConfig):
    """p = softmax(alpha / temperature) over the options of a decision (DARTS, eq. 2, whose temperature is 1)."""

    name: str = "softmax"


@dataclass
class DirichletConfig:
    """p ~ Dirichlet(elu(alpha) + 1), with pathwise gradients (DrNAS)."""

    name: str = "dirichlet"


register("relaxation", "softmax", SoftmaxConfig, "supernet.relaxations.softmax:Softmax")
register("relaxation", "dirichlet", DirichletConfig, "supernet.relaxations.dirichlet:Dirichlet")
