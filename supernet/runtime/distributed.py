"""The one point where gradients are synchronised, a no-op on one process."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def sync_grads(tensors: Sequence[Tensor]) -> None:
    """Replace gradients, in place, by their mean over all processes; does nothing on one process.

    Every process gives the same tensors in the same order: where a sampled path left a parameter without a gradient on
    one process, zeros stand for it. They travel as one flat tensor per run of a dtype and device, so the price is that
    of one message.
    """
    if not _several():
        return
    for _, group in groupby(tensors, key=lambda t: (t.dtype, t.device)):
        run = list(group)
        flat = torch.cat([t.reshape(-1) for t in run])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for tensor, mean in zip(run, torch.split(flat, [t.numel() for t in run]), strict=True):
            tensor.copy_(mean.view_as(tensor))
