"""ReinMax: a one-hot p with a second-order accurate gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from supernet.interfaces import Relaxation
from supernet.relaxations import masked_softmax, temperature
from supernet.relaxations.gumbel import gumbel, largest
from supernet.schema.relaxations import ReinMaxConfig
from supernet.types import GroupMixing, Mask


class ReinMax(Relaxation):
    """ReinMax (arXiv:2304.08612), algorithm 2: p = D, a one-hot draw from a = softmax(alpha), with the gradient
    dL/dalpha = (2 J((D + a_T) / 2) - J(a) / 2) dL/dD, where J(q) = diag(q) - q q' is the Jacobian of a softmax at q and
    a_T = softmax(alpha / T), T >= 1.

    At T = 1 it integrates dL/dp from option to option by the trapezoidal rule (Heun), exact for an L quadratic in p;
    straight-through, J(a) dL/dD, is the rule of Euler, exact for a linear one. It needs all of dL/dD, so that all
    options are evaluated, with p = 0 but for one: it costs what softmax does, unlike GDAS. Its ``mean`` is a.
    """

    def __init__(self, config: ReinMaxConfig) -> None:
        self.config = config

    def sample(self, alpha_LNK: Tensor, mask_NK: Mask, *, generator: torch.Generator, progress: float) -> GroupMixing:
        alpha = alpha_LNK.detach()
        a_LNK = masked_softmax(alpha, mask_NK)
        drawn_LNK = largest(masked_softmax(alpha + gumbel(alpha, generator), mask_NK), mask_NK)
        middle_LNK = (drawn_LNK + masked_softmax(alpha, mask_NK, temperature(self.config, progress))) / 2
        gradient_LNK = 2 * as_softmax(middle_LNK, alpha_LNK) - as_softmax(a_LNK, alpha_LNK) / 2
        return GroupMixing(drawn_LNK + gradient_LNK, mask_NK)

    def mean(self, alpha_LNK: Tensor, mask_NK: Mask, *, progress: float) -> GroupMixing:
        return GroupMixing(masked_softmax(alpha_LNK, mask_NK), mask_NK)


def as_softmax(q_LNK: Tensor, alpha_LNK: Tensor) -> Tensor:
    """Zeros whose derivative by alpha is the Jacobian of a softmax with the value q: diag(q) - q q'."""
    alpha_LNK = alpha_LNK.masked_fill(alpha_LNK.isneginf(), 0.0)  # infinity - infinity is no number
    zero_LNK = alpha_LNK - alpha_LNK.detach()
    return q_LNK * (zero_LNK - (q_LNK * zero_LNK).sum(dim=-1, keepdim=True))
