"""Single-level DARTS."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from supernet.interfaces import State, StepContext, Update
from supernet.schema import AlphaConfig
from supernet.schema.updates import SingleLevelConfig
from supernet.types import Mixing
from supernet.updates import AlphaOptimizer, pull_back


class SingleLevel(Update):
    """DARTS (arXiv:1806.09055), section 3.3, "alternative optimisation strategies": alpha and weights descend one loss
    together. The weight step's own backward pass also gives the gradient of p, over the whole search split.
    """

    uses_validation = False

    def __init__(self, config: SingleLevelConfig, *, alpha: AlphaConfig, architecture: Sequence[nn.Parameter]) -> None:
        self.optimizer = AlphaOptimizer(config, alpha, architecture)

    def step(self, ctx: StepContext) -> dict[str, Tensor]:
        return {}

    def after_weights(self, ctx: StepContext, p: Mixing, p_grads: Sequence[Tensor | None]) -> dict[str, Tensor]:
        return self.optimizer.apply(pull_back(p, p_grads, ctx.architecture), ctx)

    def state_dict(self) -> State:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: State, /) -> None:
        self.optimizer.load_state_dict(state)
