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
class SigmoidConfig:
    """p = sigmoid(alpha), each option by itself (FairDARTS)."""

    name: str = "sigmoid"


@dataclass
class GumbelSoftmaxConfig(TemperatureConfig):
    """p = softmax((alpha + Gumbel noise) / temperature), the concrete distribution (SNAS)."""

    name: str = "gumbel_softmax"


@dataclass
class HardGumbelConfig(TemperatureConfig):
    """One option a decision, drawn with probability softmax(alpha) and evaluated alone; the gradient is that of the
    Gumbel-softmax (GDAS)."""

    name: str = "hard_gumbel"


@dataclass
class ReinMaxConfig(TemperatureConfig):
    """One option a decision, drawn with probability softmax(alpha), all of them evaluated: a second-order accurate
    gradient (ReinMax, which asks for temperatures of at least 1)."""

    name: str = "reinmax"
    temperature_start: float = ranged(1.0, ge=1)
    temperature_end: float = ranged(1.0, ge=1)


@dataclass
class DirichletConfig:
    """p ~ Dirichlet(elu(alpha) + 1), with pathwise gradients (DrNAS)."""

    name: str = "dirichlet"


register("relaxation", "softmax", SoftmaxConfig, "supernet.relaxations.softmax:Softmax")
register("relaxation", "sigmoid", SigmoidConfig, "supernet.relaxations.sigmoid:Sigmoid")
register("relaxation", "gumbel_softmax", GumbelSoftmaxConfig, "supernet.relaxations.gumbel:GumbelSoftmax")
register(
    "relaxation",
    "hard_gumbel",
    HardGumbelConfig,
    "supernet.relaxations.gumbel:HardGumbel",
    refuses={
        "space=chain": "a drawn option learns by its scale there, which the next norm takes out; use reinmax, whose "
        "gradient compares options"
    },
)
register("relaxation", "reinmax", ReinMaxConfig, "supernet.relaxations.reinmax:ReinMax")
register("relaxation", "dirichlet", DirichletConfig, "supernet.relaxations.dirichlet:Dirichlet")
