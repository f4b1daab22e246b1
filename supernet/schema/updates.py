"""Update rules of alpha."""

from __future__ import annotations

from dataclasses import dataclass

from supernet.registry import register
from supernet.schema.fields import listed, ranged


@dataclass
class FirstOrderConfig:
    """Alpha follows the gradient of the validation loss at the current weights (DARTS, eq. 7 with xi = 0)."""

    name: str = "first_order"
    lr_factor: float = ranged(1.0, gt=0)  # times search.alpha.lr
    betas: list[float] = listed(0.5, 0.999, length=2, ge=0, lt=1)
    weight_decay: float = ranged(1e-3, ge=0)


@dataclass
class UnrolledConfig(FirstOrderConfig):
    """Alpha follows the gradient through one virtual weight step (DARTS, eq. 7 and 8)."""

    name: str = "unrolled"
    epsilon: float = ranged(0.01, gt=0)  # finite difference: epsilon / norm of the gradient, as published


@dataclass
class SingleLevelConfig(FirstOrderConfig):
    """Alpha and weights descend the same loss on the same batches, drawn from the whole training split."""

    name: str = "single_level"


register("update", "first_order", FirstOrderConfig, "supernet.updates.first_order:FirstOrder")
register("update", "unrolled", UnrolledConfig, "supernet.updates.unrolled:Unrolled")
register("update", "single_level", SingleLevelConfig, "supernet.updates.single_level:SingleLevel")


@dataclass
class FrozenConfig:
    """Alpha never moves: the weights alone are trained, at the p with which alpha starts."""

    name: str = "frozen"


NO_ALPHA = "it acts on the steps of alpha, of which there are none"
register(
    "update",
    "frozen",
    FrozenConfig,
    "supernet.updates.frozen:Frozen",
    refuses={f"modifier={name}": NO_ALPHA for name in ("beta_decay", "cost", "dirichlet_kl", "warm_up")},
)
