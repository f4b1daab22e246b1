"""The loss of FairDARTS that sends every weight to 0 or to 1."""

from __future__ import annotations

import torch
from torch import Tensor

from supernet.interfaces import LossModifier, Setting
from supernet.relaxations import mask_tensor
from supernet.schema.modifiers import ZeroOneLossConfig
from supernet.types import Mixing, Moment


class ZeroOneLoss(LossModifier):
    """FairDARTS (arXiv:1911.12126), section 4.2: the loss of alpha gains weight * L_01, where L_01 = -(1 / N) * sum of
    (sigmoid(alpha_i) - 1/2)^2 over the N weights of all groups together, as in the published code.

    Without it sigmoids end anywhere, and a threshold cuts what the network was trained with. Its gradient is zero at
    alpha = 0, so it decides nothing by itself. Options that no genotype holds are not counted: the paper's operations
    are those of DARTS without ``none``.
    """

    def __init__(self, config: ZeroOneLossConfig) -> None:
        self.weight = config.weight

    def bind(self, setting: Setting) -> None:
        self.groups = {group.name: group for group in setting.space.groups}

    def loss_term(self, p: Mixing, alphas: dict[str, Tensor], moment: Moment) -> Tensor | None:
        if moment.phase != "alpha":
            return None
        total, count = torch.zeros((), device=next(iter(alphas.values())).device), 0
        for name, alpha_LNK in alphas.items():
            group = self.groups[name]
            rows = [set(group.derivable(n)) for n in range(group.decisions)]
            counted_NK = tuple(
                tuple(here and k in rows[n] for k, here in enumerate(row)) for n, row in enumerate(p[name].mask_NK)
            )
            squares_LNK = (alpha_LNK.sigmoid() - 0.5).square()
            total = total + squares_LNK.masked_fill(~mask_tensor(counted_NK, alpha_LNK.device), 0.0).sum()
            count += len(alpha_LNK) * sum(map(sum, counted_NK))
        return -self.weight * total / max(count, 1)
