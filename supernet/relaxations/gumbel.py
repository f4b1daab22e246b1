"""Relaxations with Gumbel noise: the concrete distribution of SNAS, and its hard form of GDAS."""

from __future__ import annotations

import torch
from torch import Tensor

from supernet.interfaces import Relaxation
from supernet.relaxations import existing, masked_softmax, temperature
from supernet.schema.relaxations import GumbelSoftmaxConfig, HardGumbelConfig
from supernet.types import GroupMixing, Mask


class GumbelSoftmax(Relaxation):
    """SNAS (arXiv:1812.09926), eq. 5: p = softmax((log a + G) / T), G ~ Gumbel(0, 1), a = softmax(alpha).

    p is dense, nearly uniform at a high temperature T and nearly one-hot at a low one. Its ``mean`` is that of the
    one-hot choice which it relaxes, a: which option is the largest does not depend on T, and E[p] goes to a as T goes
    to 0. At T > 0, E[p] lies between a and the uniform distribution and has no closed form.
    """

    def __init__(self, config: GumbelSoftmaxConfig) -> None:
        self.config = config

    def sample(self, alpha_LNK: Tensor, mask_NK: Mask, *, generator: torch.Generator, progress: float) -> GroupMixing:
        p_LNK = perturbed_softmax(alpha_LNK, mask_NK, temperature(self.config, progress), generator)
        return GroupMixing(p_LNK, mask_NK)

    def mean(self, alpha_LNK: Tensor, mask_NK: Mask, *, progress: float) -> GroupMixing:
        return GroupMixing(masked_softmax(alpha_LNK, mask_NK), mask_NK)


class HardGumbel(Relaxation):
    """GDAS (arXiv:1910.04465), eq. 5 to 7: p = one_hot(argmax of log a + G) forward, and backward the gradient of
    softmax((log a + G) / T), G ~ Gumbel(0, 1), a = softmax(alpha).

    One option a decision is evaluated, so dL/dp has the column of that option only and the others are zero, as in the
    paper, whose backward pass goes through the sampled function alone. The published code adds the weights of
    the other options, which are zero, to the output as plain numbers: their columns then hold the sum of dL/dy over all
    elements, the gradient of an operation that answers 1 everywhere, and not of theirs. (Its author's later variant
    ``forward_gdas_v1`` leaves them out, as here.) Its ``mean`` is a, the probabilities of the options at any T.
    """

    sparse = True

    def __init__(self, config: HardGumbelConfig) -> None:
        self.config = config

    def sample(self, alpha_LNK: Tensor, mask_NK: Mask, *, generator: torch.Generator, progress: float) -> GroupMixing:
        soft_LNK = perturbed_softmax(alpha_LNK, mask_NK, temperature(self.config, progress), generator)
        # The difference is zero exactly, so p is exactly 0 and 1.
        p_LNK = largest(soft_LNK, mask_NK) + (soft_LNK - soft_LNK.detach())
        return GroupMixing(p_LNK, mask_NK)

    def mean(self, alpha_LNK: Tensor, mask_NK: Mask, *, progress: float) -> GroupMixing:
        return GroupMixing(masked_softmax(alpha_LNK, mask_NK), mask_NK)


def perturbed_softmax(alpha_LNK: Tensor, mask_NK: Mask, temperature: float, generator: torch.Generator) -> Tensor:
    """softmax((alpha + G) / temperature) over the options that exist, G ~ Gumbel(0, 1).

    alpha stands for log a: they differ by a number for each decision, to which a softmax is blind.
    """
    return masked_softmax(alpha_LNK + gumbel(alpha_LNK, generator), mask_NK, temperature)


def gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Gumbel(0, 1) noise: -log E of exponential E."""
    exponential = torch.empty_like(like, requires_grad=False).exponential_(generator=generator)
    return -exponential.clamp_min(torch.finfo(like.dtype).tiny).log()


def largest(p_LNK: Tensor, mask_NK: Mask) -> Tensor:
    """One-hot at the largest entry of every decision, without a graph."""
    p_LNK = p_LNK.detach()
    one_hot_LNK = torch.zeros_like(p_LNK).scatter_(-1, p_LNK.argmax(dim=-1, keepdim=True), 1.0)
    return existing(one_hot_LNK, mask_NK)
