"""Weights first, alpha later."""

from __future__ import annotations

from supernet.interfaces import AlphaGate
from supernet.schema.modifiers import WarmUpConfig
from supernet.types import Moment


class WarmUp(AlphaGate):
    """PC-DARTS (arXiv:1907.05737), section 4.2: alpha stays as it is for the first 15 of 50 epochs, so that operations
    with weights are not judged before they have learned.

    ``fraction`` is a share of the stage, hence of the search where it has one stage.
    """

    def __init__(self, config: WarmUpConfig) -> None:
        self.fraction = config.fraction

    def alpha_moves(self, moment: Moment) -> bool:
        return moment.stage_progress >= self.fraction
