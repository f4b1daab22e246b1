"""The regulariser of beta-DARTS."""

from __future__ import annotations

import torch
from torch import Tensor

from supernet.interfaces import LossModifier, Setting
from supernet.relaxations import logits, without_extras
from supernet.schema.modifiers import BetaDecayConfig
from supernet.types import Mask, Mixing, Moment


class BetaDecay(LossModifier):
    """beta-DARTS (arXiv:2203.01665), section 3.2: the loss of alpha gains lambda * L_Beta, which keeps p = softmax of
    alpha, the paper's beta, from growing apart.

    lambda rises linearly from 0 to ``weight`` over the search, as published (50 * epoch / 100 in the code, whose
    searches take 100 epochs). L_Beta is the mean over decisions, as in the code, here over those of all groups; the
    code published is for a space of one group.
    """

    def __init__(self, config: BetaDecayConfig) -> None:
        self.weight = config.weight

    def bind(self, setting: Setting) -> None:
        self.groups = {group.name: group for group in setting.space.groups}

    def loss_term(self, p: Mixing, alphas: dict[str, Tensor], moment: Moment) -> Tensor | None:
        if moment.phase != "alpha":
            return None
        terms = [
            smooth_max(alpha_LNK, without_extras(p[name].mask_NK, self.groups[name])).flatten()
            for name, alpha_LNK in alphas.items()
        ]
        return self.weight * moment.progress * torch.cat(terms).mean()


def smooth_max(alpha_LNK: Tensor, mask_NK: Mask) -> Tensor:
    """beta-DARTS (arXiv:2203.01665), section 3.2: L_Beta = log(sum over k of exp(alpha_k)) of every decision, over its
    options that exist. Its gradient is softmax(alpha): what is strongest is pulled down most.
    """
    return logits(alpha_LNK, mask_NK).logsumexp(dim=-1)
