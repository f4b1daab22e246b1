"""Relaxations: how alpha becomes p."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from supernet.interfaces import Relaxation
from supernet.schema.relaxations import SoftmaxConfig
from supernet.types import GroupMixing, Mask


class Softmax(Relaxation):
    """DARTS (arXiv:1806.09055), eq. 2: p_k = exp(alpha_k) / sum over k' of exp(alpha_k'), over the options that exist.

    It has no noise, so its sample is its mean.
    """

    def __init__(self, config: SoftmaxConfig) -> None:
        pass

    def sample(self, alpha_LNK: Tensor, mask_NK: Mask, *, generator: torch.Generator, progress: float) -> GroupMixing:
        return self.mean(alpha_LNK, mask_NK)

    def mean(self, alpha_LNK: Tensor, mask_NK: Mask) -> GroupMixing:
        return GroupMixing(masked(alpha_LNK, mask_NK).softmax(dim=-1), mask_NK)


def masked(alpha_LNK: Tensor, mask_NK: Mask) -> Tensor:
    """alpha with minus infinity where an option does not exist; alpha itself where all do."""
    if all(all(row) for row in mask_NK):
        return alpha_LNK
    return alpha_LNK.masked_fill(~mask_tensor(mask_NK, alpha_LNK.device), float("-inf"))


@lru_cache(maxsize=64)
def mask_tensor(mask_NK: Mask, device: torch.device) -> Tensor:
    """A mask on the device, copied there once."""
    return torch.tensor(mask_NK, device=device)
