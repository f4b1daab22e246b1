"""Modifiers: what a method adds to the arrow, each at one place."""

from __future__ import annotations

from dataclasses import dataclass

from supernet.registry import register
from supernet.schema.fields import choice, listed, ranged


@dataclass
class DirichletKLConfig:
    """The loss of alpha gains the divergence of p's Dirichlet distribution from the flat one (DrNAS)."""

    name: str = "dirichlet_kl"
    weight: float = ranged(1e-3, ge=0)  # of the sum over decisions, as in the published code


register(
    "modifier",
    "dirichlet_kl",
    DirichletKLConfig,
    "supernet.modifiers.dirichlet_kl:DirichletKL",
    needs={"relaxation": ("dirichlet",)},
)


@dataclass
class StrongL2Config:
    """The weights' decay times a factor (RobustDARTS, arXiv:1909.09656, section 5.2)."""

    name: str = "strong_l2"
    factor: float = ranged(27.0, ge=0)  # of search.weight_decay; published: 1, 3, 9, 27


@dataclass
class DropPathConfig:
    """Scheduled drop path in the search (RobustDARTS, arXiv:1909.09656, section 5.1)."""

    name: str = "drop_path"
    rate: float = ranged(0.2, ge=0, lt=1)  # reached at the end of the search; published: 0, 0.2, 0.4, 0.6
    phases: str = choice("weights", "weights", "both")  # the paper speaks of the inner objective, its code does both


@dataclass
class SkipDropoutConfig:
    """Dropout after skip connections, decaying within each stage (P-DARTS, arXiv:1904.12760, section 3.3)."""

    name: str = "skip_dropout"
    rates: list[float] = listed(0.0, 0.4, 0.7, ge=0, lt=1)  # at the beginning of each stage; published for CIFAR-10
    warmup: float = ranged(0.4, ge=0, le=1)  # share of a stage with a linear decay: 10 of 25 epochs, as published
    decay: float = ranged(5.0, ge=0)  # of the exponential afterwards, for a whole stage: 0.2 an epoch, as published


@dataclass
class SkipLimitConfig:
    """At most so many skip connections in the derived cell (P-DARTS, arXiv:1904.12760, section 3.3)."""

    name: str = "skip_limit"
    limit: int = ranged(2, ge=0)  # M, as published
    cell: str = "normal"  # the group that is limited, as published


register("modifier", "strong_l2", StrongL2Config, "supernet.modifiers.strong_l2:StrongL2")
register("modifier", "drop_path", DropPathConfig, "supernet.modifiers.drop_path:DropPath")
register("modifier", "skip_dropout", SkipDropoutConfig, "supernet.modifiers.skip_dropout:SkipDropout")
register("modifier", "skip_limit", SkipLimitConfig, "supernet.modifiers.skip_limit:SkipLimit")
