"""First-order DARTS."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from supernet.interfaces import State, StepContext, Update
from supernet.schema import AlphaConfig
from supernet.schema.updates import FirstOrderConfig
from supernet.updates import AlphaOptimizer, gradient_of_p, pull_back


class FirstOrder(Update):
    """DARTS (arXiv:1806.09055), eq. 7 with xi = 0: alpha descends L_val(w, alpha) at the current weights w."""

    def __init__(self, config: FirstOrderConfig, *, alpha: AlphaConfig, architecture: Sequence[nn.Parameter]) -> None:
        self.optimizer = AlphaOptimizer(config, alpha, architecture)

    def step(self, ctx: StepContext) -> dict[str, Tensor]:
        p = ctx.mixing("alpha")
        loss, p_grads = gradient_of_p(ctx, "alpha", p.leaf())
        logged = self.optimizer.apply(pull_back(p, p_grads, ctx.architecture), ctx)
        return {"alpha_loss": loss, **logged}

    def state_dict(self) -> State:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: State, /) -> None:
        self.optimizer.load_state_dict(state)
