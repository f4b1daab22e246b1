"""Derivations: how the search becomes one architecture."""

from __future__ import annotations

from dataclasses import dataclass

from supernet.registry import register
from supernet.schema.fields import choice, ranged


@dataclass
class Top2Config:
    """Per node, the two incoming edges whose best operation other than ``none`` is strongest (DARTS, section 2.4)."""

    name: str = "top2"


register("derive", "top2", Top2Config, "supernet.derive.top2:Top2")


@dataclass
class PerturbationConfig:
    """Keep what the supernet misses most when it is taken away; tune the supernet between decisions (DARTS-PT,
    arXiv:2108.04392)."""

    name: str = "perturbation"
    tune: float = ranged(0.1, ge=0, le=1)  # share of search.epochs after each decision, at least one epoch: 5 of 50
    lr_factor: float = ranged(0.1, gt=0)  # of search.lr, where the tuning begins; published code
    criterion: str = choice("accuracy", "accuracy", "loss")  # on validation data; the other one decides between equals


@dataclass
class RandomConfig:
    """A genotype drawn uniformly; nothing is searched for."""

    name: str = "random"


register(
    "derive",
    "perturbation",
    PerturbationConfig,
    "supernet.derive.perturbation:Perturbation",
    refuses={"modifier=skip_limit": "it limits what follows from p, and here the accuracy decides"},
)
register("derive", "random", RandomConfig, "supernet.derive.random:Random", needs={"update": ("frozen",)})


@dataclass
class ArgmaxConfig:
    """Every decision keeps its strongest derivable option (SNAS, NAS-Bench-201)."""

    name: str = "argmax"
    leave_out: bool = False  # drop edges on which an option that no genotype holds (none, in DARTS) is the strongest


@dataclass
class ThresholdConfig:
    """Per node at most two edges, each with its strongest operation, if its p reaches a threshold (FairDARTS)."""

    name: str = "threshold"
    threshold: float = ranged(0.85, ge=0, lt=1)


register("derive", "argmax", ArgmaxConfig, "supernet.derive.argmax:Argmax")
register(
    "derive",
    "threshold",
    ThresholdConfig,
    "supernet.derive.threshold:Threshold",
    refuses={
        "space=nasbench201": "it leaves edges out, and all edges of this space are kept; use derive=argmax",
        "space=chain": "it leaves edges out, and all decisions of this space are kept; use derive=argmax",
        "space=enas_macro": "it leaves edges out, and all decisions of this space are kept; use derive=argmax",
        "modifier=edge_norm": "the threshold is one of operations, and edges have their own weights then",
    },
)
