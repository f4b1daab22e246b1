"""The regulariser of DrNAS."""

from __future__ import annotations

import torch
from torch import Tensor

from supernet.interfaces import LossModifier, Setting
from supernet.relaxations import mask_tensor, without_extras
from supernet.relaxations.dirichlet import concentration
from supernet.schema.modifiers import DirichletKLConfig
from supernet.types import Mask, Mixing, Moment


class DirichletKL(LossModifier):
    """DrNAS (arXiv:2006.10355), section 2.2: the loss of alpha gains weight * d(beta, 1), the divergence of p's
    distribution from the flat Dirichlet(1), summed over all decisions.

    It keeps concentrations from vanishing (all draws at corners) and from growing (no exploration). In the published
    code it stands in for the weight decay of alpha (``update.weight_decay``), and is off unless asked for.
    """

    def __init__(self, config: DirichletKLConfig) -> None:
        self.weight = config.weight

    def bind(self, setting: Setting) -> None:
        self.groups = {group.name: group for group in setting.space.groups}

    def loss_term(self, p: Mixing, alphas: dict[str, Tensor], moment: Moment) -> Tensor | None:
        if moment.phase != "alpha":
            return None
        terms = []
        for name, alpha_LNK in alphas.items():
            mask_NK = without_extras(p[name].mask_NK, self.groups[name])
            terms.append(kl_to_flat(concentration(alpha_LNK, mask_NK), mask_NK).sum())
        return self.weight * torch.stack(terms).sum()


def kl_to_flat(beta_LNK: Tensor, mask_NK: Mask) -> Tensor:
    """DrNAS (arXiv:2006.10355), section 2.2: d(beta, 1), as in the published code KL(Dirichlet(beta) || Dirichlet(1)) =
    log G(B) - log G(K) - sum of log G(beta_k) + sum of (beta_k - 1) (psi(beta_k) - psi(B)), for every decision over its
    K options that exist; B = sum of beta_k, G is the gamma function and psi the derivative of its logarithm.
    """
    there_NK = mask_tensor(mask_NK, beta_LNK.device)
    flat_N = there_NK.sum(dim=-1).clamp_min(1).to(beta_LNK).lgamma()
    total_LN = beta_LNK.sum(dim=-1)
    total_LN = total_LN.masked_fill(total_LN == 0, 1.0)
    # What does not exist has concentration 1 here, which adds nothing to either sum.
    beta_LNK = beta_LNK.masked_fill(~there_NK, 1.0)
    inner_LNK = (beta_LNK - 1) * (beta_LNK.digamma() - total_LN.digamma()[..., None]) - beta_LNK.lgamma()
    return total_LN.lgamma() - flat_N + inner_LNK.sum(dim=-1)
