"""The relaxation of DrNAS: p is drawn from a Dirichlet distribution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from supernet.interfaces import Relaxation
from supernet.relaxations import existing, mask_tensor
from supernet.schema.relaxations import DirichletConfig
from supernet.types import GroupMixing, Mask

SMALLEST = 1e-8
"""Of a concentration: below, almost every draw is a corner and the derivative overflows; alpha = -18."""


class Dirichlet(Relaxation):
    """DrNAS (arXiv:2006.10355), section 2.2: p ~ Dirichlet(beta), beta = elu(alpha) + 1, over the options that exist.

    The mean is E[p_k] = beta_k / sum over k' of beta_k', which is what the paper derives from. The published code
    derives from softmax(alpha) instead: of two options of one edge both rank the same first, but not of two edges.
    Where an option does not exist, the rest are Dirichlet distributed with the concentrations that they have, as in the
    code, which renormalises what is left of a draw. Draws are made in float64, where small concentrations do not
    underflow. torch has this sampler on CPU and CUDA only.
    """

    def __init__(self, config: DirichletConfig) -> None:
        pass

    def sample(self, alpha_LNK: Tensor, mask_NK: Mask, *, generator: torch.Generator, progress: float) -> GroupMixing:
        # A single option has p = 1 and no derivative; the formula of the derivative would be 0 / 0 there.
        chance_N1 = mask_tensor(tuple((sum(row) > 1,) for row in mask_NK), alpha_LNK.device)
        beta_LNK = concentration(alpha_LNK, mask_NK).double()
        drawn: Tensor = PathwiseDirichlet.apply(beta_LNK, generator)
        p_LNK = torch.where(chance_N1, drawn, (beta_LNK > 0).to(drawn))
        return GroupMixing(p_LNK.to(alpha_LNK), mask_NK)

    def mean(self, alpha_LNK: Tensor, mask_NK: Mask, *, progress: float) -> GroupMixing:
        beta_LNK = concentration(alpha_LNK, mask_NK)
        total_LN1 = beta_LNK.sum(dim=-1, keepdim=True).clamp_min(SMALLEST)  # of no options, 0 / SMALLEST
        return GroupMixing(beta_LNK / total_LN1, mask_NK)


def concentration(alpha_LNK: Tensor, mask_NK: Mask) -> Tensor:
    """DrNAS (arXiv:2006.10355), section 2.2: beta = elu(alpha) + 1, positive; 0 where an option does not exist.

    Written as exp(alpha) for alpha <= 0, which elu(alpha) + 1 rounds to zero below -17. Not with clamp, whose gradient
    at its bound, alpha = 0, where a search begins, is zero.
    """
    beta_LNK = torch.where(alpha_LNK > 0, alpha_LNK + 1, alpha_LNK.masked_fill(alpha_LNK > 0, 0.0).exp())
    return existing(beta_LNK.clamp_min(SMALLEST), mask_NK)


class PathwiseDirichlet(torch.autograd.Function):
    """DrNAS (arXiv:2006.10355), section 2.2: the pathwise derivative of a draw x ~ Dirichlet(beta) (Jankowiak and
    Obermeyer, arXiv:1806.01851), dx_i/dbeta_j = -(dF/dbeta_j)(x_j) / f(x_j) * (1[i = j] - x_i) / (1 - x_j).

    F and f are distribution function and density of x_j, which is Beta(beta_j, sum(beta) - beta_j). ``torch`` has the
    formula behind ``torch.distributions.Dirichlet.rsample``, which would draw from the global state. The derivative of
    the normalised gammas, which autograd gives, is a valid one too; this is its mean given x, so it varies less.
    """

    @staticmethod
    def forward(ctx: Any, beta: Tensor, generator: torch.Generator) -> Tensor:
        there = beta > 0
        gamma = torch._standard_gamma(beta.masked_fill(~there, 1.0), generator=generator).masked_fill(~there, 0.0)
        total = gamma.sum(dim=-1, keepdim=True)
        x = gamma / total.masked_fill(total == 0, 1.0)
        ctx.save_for_backward(x, beta)
        return x

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor) -> tuple[Tensor, None]:
        x, beta = ctx.saved_tensors
        there = beta > 0
        total = beta.sum(dim=-1, keepdim=True).expand_as(beta)
        inside = x.clamp(torch.finfo(x.dtype).tiny, 1 - torch.finfo(x.dtype).eps)
        # -(dF/dbeta) / f / (1 - x), elementwise.
        scale = torch._dirichlet_grad(inside, beta.masked_fill(~there, 1.0), total.masked_fill(~there, 2.0))
        grad = scale * (grad_x - (x * grad_x).sum(dim=-1, keepdim=True))
        return grad.masked_fill(~there, 0.0), None
