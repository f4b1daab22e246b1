"""Adversarial perturbation of p."""

from __future__ import annotations

import torch
from torch import Tensor

from supernet.interfaces import MixingModifier, PGradient, Setting
from supernet.modifiers.perturbation import Perturbed, groups_of, ramp
from supernet.schema.modifiers import PerturbAdversarialConfig
from supernet.types import Mixing, Moment


class PerturbAdversarial(MixingModifier):
    """SDARTS-ADV (arXiv:2002.05283), algorithm 1: weights descend the maximum of L_train(w, A + delta)
    over |delta|_inf <= epsilon, found by projected gradient ascent; alpha is judged at A itself.

    A is p, the softmax of alpha, as in the published code. There the attack runs in evaluation mode, on running batch
    statistics; here on the loss that the weight step then descends, with its batch norm and its dropouts, and the
    network's buffers are put back after every pass (:func:`supernet.updates.quiet`).
    """

    def __init__(self, config: PerturbAdversarialConfig) -> None:
        self.config = config

    def bind(self, setting: Setting) -> None:
        self.groups = groups_of(setting)

    def edit_mixing(
        self, p: Mixing, moment: Moment, *, generator: torch.Generator, gradient: PGradient | None
    ) -> Mixing:
        if moment.phase != "weights":
            return p
        assert gradient is not None
        perturbed = Perturbed(p, self.groups, "perturb_adversarial")
        epsilon = ramp(self.config, moment)
        return perturbed.at(attack(perturbed, gradient, epsilon, self.config.steps, generator))


def attack(
    perturbed: Perturbed, gradient: PGradient, epsilon: float, steps: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """SDARTS-ADV (arXiv:2002.05283), algorithm 1: A' = P(A' + (2 epsilon / steps) sign(dL/dA')), ``steps`` times from a
    random start in the ball; P clamps A' - A to [-epsilon, epsilon], and then makes it a p.

    As published, P does not project onto what is both a p and in the ball: dividing by a decision's sum may leave the
    ball a little. Where the end has a smaller loss than A, A stays. The result has no graph.
    """
    before, _ = gradient(perturbed.p)
    op_LNK = perturbed.moved(perturbed.noise(epsilon, generator))
    for _ in range(steps):
        here = perturbed.at(op_LNK)
        _, grads = gradient(here)
        slopes = here.with_tensors(grads)
        delta = {
            name: op + (2 * epsilon / steps) * slopes[name].op_LNK.sign() - perturbed.op_LNK[name]
            for name, op in op_LNK.items()
        }
        op_LNK = perturbed.moved({name: d.clamp(-epsilon, epsilon) for name, d in delta.items()})
    after, _ = gradient(perturbed.at(op_LNK))
    return {name: torch.where(before > after, perturbed.op_LNK[name], op) for name, op in op_LNK.items()}
