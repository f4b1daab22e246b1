"""No architecture step at all."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from supernet.interfaces import State, StepContext, Update
from supernet.schema import AlphaConfig
from supernet.schema.updates import FrozenConfig


class Frozen(Update):
    """Alpha stays where it starts: uniform, unless ``search.alpha.init_std`` says otherwise. This is the supernet with
    which DARTS-PT (arXiv:2108.04392) asks whether alpha is needed at all.

    Weights still train on their part of the split; the other part is for the derivation, and no batch of it is drawn.
    """

    learns = "nothing"

    def __init__(self, config: FrozenConfig, *, alpha: AlphaConfig, architecture: Sequence[nn.Parameter]) -> None:
        pass

    def step(self, ctx: StepContext) -> dict[str, Tensor]:
        return {}

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State, /) -> None:
        assert not state
