"""Scheduled drop path in the search."""

from __future__ import annotations

from dataclasses import replace

import torch

from supernet.interfaces import MixingModifier, PGradient
from supernet.schema.modifiers import DropPathConfig
from supernet.types import Mixing, Moment


class DropPath(MixingModifier):
    """RobustDARTS (arXiv:1909.09656), section 5.1: every edge's weighted sum is dropped, sample by sample, at a rate
    that grows linearly with the search from 0 to ``rate`` (scheduled drop path, arXiv:1707.07012).

    The paper regularises the inner objective, so it acts in the weight phase; the published code drops in every pass in
    training mode, the architecture step's included (``phases=both``). There the ramp is a function of the epoch that
    reaches ``rate`` in the last one; here of the step. It also ramps the probability of cutout, which the search here
    does not have.
    """

    def __init__(self, config: DropPathConfig) -> None:
        self.rate = config.rate
        self.phases = ("weights", "alpha") if config.phases == "both" else ("weights",)

    def edit_mixing(
        self, p: Mixing, moment: Moment, *, generator: torch.Generator, gradient: PGradient | None
    ) -> Mixing:
        if moment.phase not in self.phases:
            return p
        rate = self.rate * moment.progress
        return Mixing({name: replace(group, drop_path=rate) for name, group in p.items()})
