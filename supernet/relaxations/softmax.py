"""The relaxation of DARTS."""

from __future__ import annotations

import torch
from torch import Tensor

from supernet.interfaces import Relaxation
from supernet.relaxations import masked_softmax, temperature
from supernet.schema.relaxations import SoftmaxConfig
from supernet.types import GroupMixing, Mask


class Softmax(Relaxation):
    """DARTS (arXiv:1806.09055), eq. 2: p_k = exp(alpha_k) / sum over k' of exp(alpha_k'), over the options that exist.

    With a temperature T, alpha / T stands for alpha; T = 1 is the published form. There is no noise, so its sample is
    its mean.
    """

    def __init__(self, config: SoftmaxConfig) -> None:
        self.config = config

    def sample(self, alpha_LNK: Tensor, mask_NK: Mask, *, generator: torch.Generator, progress: float) -> GroupMixing:
        return self.mean(alpha_LNK, mask_NK, progress=progress)

    def mean(self, alpha_LNK: Tensor, mask_NK: Mask, *, progress: float) -> GroupMixing:
        return GroupMixing(masked_softmax(alpha_LNK, mask_NK, temperature(self.config, progress)), mask_NK)
