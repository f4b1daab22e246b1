"""Random smoothing."""

from __future__ import annotations

import torch

from supernet.interfaces import MixingModifier, PGradient, Setting
from supernet.modifiers.perturbation import Perturbed, groups_of, ramp
from supernet.schema.modifiers import PerturbRandomConfig
from supernet.types import Mixing, Moment


class PerturbRandom(MixingModifier):
    """SDARTS-RS (arXiv:2002.05283), algorithm 1: weights descend E[L_train(w, A + delta)], delta ~
    U[-epsilon, epsilon], by one draw a step; alpha is judged at A itself.

    A is p, the softmax of alpha, as in the published code (the paper does not say which).
    """

    def __init__(self, config: PerturbRandomConfig) -> None:
        self.config = config

    def bind(self, setting: Setting) -> None:
        self.groups = groups_of(setting)

    def edit_mixing(
        self, p: Mixing, moment: Moment, *, generator: torch.Generator, gradient: PGradient | None
    ) -> Mixing:
        if moment.phase != "weights":
            return p
        perturbed = Perturbed(p, self.groups, "perturb_random")
        return perturbed.at(perturbed.moved(perturbed.noise(ramp(self.config, moment), generator)))
