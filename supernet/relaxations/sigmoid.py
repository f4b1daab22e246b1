"""The relaxation of FairDARTS."""

from __future__ import annotations

import torch
from torch import Tensor

from supernet.interfaces import Relaxation
from supernet.relaxations import existing
from supernet.schema.relaxations import SigmoidConfig
from supernet.types import GroupMixing, Mask


class Sigmoid(Relaxation):
    """FairDARTS (arXiv:1911.12126), section 4.1: p_k = 1 / (1 + exp(-alpha_k)), each option by itself.

    Options do not compete for a sum of 1, so that a skip connection gains nothing from another's loss; at alpha = 0
    every p is 1/2. There is no noise, so its sample is its mean.
    """

    def __init__(self, config: SigmoidConfig) -> None:
        pass

    def sample(self, alpha_LNK: Tensor, mask_NK: Mask, *, generator: torch.Generator, progress: float) -> GroupMixing:
        return self.mean(alpha_LNK, mask_NK, progress=progress)

    def mean(self, alpha_LNK: Tensor, mask_NK: Mask, *, progress: float) -> GroupMixing:
        return GroupMixing(existing(alpha_LNK.sigmoid(), mask_NK), mask_NK)
