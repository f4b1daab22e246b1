"""Relaxations: how alpha becomes p, and what they share: masks and schedules of a temperature.

Every relaxation gives an option that does not exist p = 0 and its alpha the gradient 0, whatever that alpha is, minus
infinity included; a decision none of whose options exist has p = 0 throughout.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from supernet.schema.relaxations import TemperatureConfig
from supernet.types import Group, Mask


def logits(alpha_LNK: Tensor, mask_NK: Mask) -> Tensor:
    """alpha with minus infinity where an option does not exist; alpha itself where all do.

    A decision without any option keeps zeros instead, so that its softmax, of which :func:`existing` leaves nothing, is
    finite.
    """
    if all(all(row) for row in mask_NK):
        return alpha_LNK
    device = alpha_LNK.device
    filled = alpha_LNK.masked_fill(~mask_tensor(mask_NK, device), float("-inf"))
    if all(any(row) for row in mask_NK):
        return filled
    return filled.masked_fill(~mask_tensor(tuple((any(row),) for row in mask_NK), device), 0.0)


def existing(p_LNK: Tensor, mask_NK: Mask) -> Tensor:
    """p with zeros where an option does not exist; p itself where all do."""
    if all(all(row) for row in mask_NK):
        return p_LNK
    return p_LNK.masked_fill(~mask_tensor(mask_NK, p_LNK.device), 0.0)


def masked_softmax(alpha_LNK: Tensor, mask_NK: Mask, temperature: float = 1.0) -> Tensor:
    """softmax(alpha / temperature) over the options that exist."""
    return existing((logits(alpha_LNK, mask_NK) / temperature).softmax(dim=-1), mask_NK)


def temperature(config: TemperatureConfig, progress: float) -> float:
    """The temperature when a share ``progress`` of the search is done: linear or exponential from start to end."""
    start, end = config.temperature_start, config.temperature_end
    if config.anneal == "linear":
        return start + (end - start) * progress
    return float(start * (end / start) ** progress)


def without_extras(mask_NK: Mask, group: Group) -> Mask:
    """The mask of the relaxation, from that of p', to which a modifier may have added the extras of a group."""
    if not group.extras:
        return mask_NK
    keep = [name not in group.extras for name in group.options]
    return tuple(tuple(here and kept for here, kept in zip(row, keep, strict=True)) for row in mask_NK)


@lru_cache(maxsize=64)
def mask_tensor(mask_NK: Mask, device: torch.device) -> Tensor:
    """A mask on the device, copied there once."""
    return torch.tensor(mask_NK, device=device)
