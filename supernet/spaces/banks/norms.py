"""The batch norms of a bank: gather what they know, and keep their running statistics as they would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from supernet.spaces.banks.fold import Affine


@dataclass(frozen=True)
class Normed:
    """A batch norm as one of the M products of a bank sees it: its channels from ``first`` up to ``end`` (a factorized
    reduction is two products, each with its part of the channels); ``norm`` is None for an identity."""

    norm: nn.BatchNorm2d | None
    first: int
    end: int
    channels: int

    def part(self, full_C: Tensor) -> list[Tensor]:
        """``full_C`` with zeros outside of the part."""
        if self.end - self.first == self.channels:
            return [full_C]
        zeros = [full_C.new_zeros(self.first), full_C.new_zeros(self.channels - self.end)]
        return [zeros[0], full_C[self.first : self.end], zeros[1]]


def whole(norm: nn.BatchNorm2d) -> Normed:
    """All channels of a norm."""
    return Normed(norm, 0, norm.num_features, norm.num_features)


def uses_batch(norm: nn.BatchNorm2d) -> bool:
    """Whether the norm uses the statistics of the batch now."""
    return norm.training or norm.running_mean is None


def gather(normed: Sequence[Normed], like: Tensor) -> Affine:
    """gamma, β and, where they are used, running statistics, stacked for the M products of a bank."""
    norms = [n.norm for n in normed if n.norm is not None]
    channels = normed[0].channels
    if not norms:
        return Affine(1.0)
    ones, zeros = like.new_ones(channels), like.new_zeros(channels)
    scale_MC = shift_MC = fixed = None
    if any(norm.affine for norm in norms):
        scale_MC = torch.cat([ones if n.norm is None or not n.norm.affine else n.norm.weight for n in normed])
        shift_MC = torch.cat(
            [t for n in normed for t in ([zeros] if n.norm is None or not n.norm.affine else n.part(n.norm.bias))]
        )
        scale_MC, shift_MC = scale_MC.view(-1, channels), shift_MC.view(-1, channels)
    if not uses_batch(norms[0]):
        mean_MC = torch.cat([t for n in normed for t in ([zeros] if n.norm is None else n.part(_mean(n.norm)))])
        var_MC = torch.cat([ones if n.norm is None else _var(n.norm) for n in normed])
        fixed = mean_MC.view(-1, channels).double(), var_MC.view(-1, channels).double()
    return Affine(norms[0].eps, scale_MC, shift_MC, fixed)


def _mean(norm: nn.BatchNorm2d) -> Tensor:
    assert norm.running_mean is not None
    return norm.running_mean


def _var(norm: nn.BatchNorm2d) -> Tensor:
    assert norm.running_var is not None
    return norm.running_var


@torch.no_grad()
def track(normed: Sequence[Normed], mean_MC: Tensor, var_MC: Tensor, n: int) -> None:
    """Move the running statistics of all norms towards those of a batch of n pixels, as batch norm does (the variance
    without bias), where they are tracked."""
    means: dict[nn.BatchNorm2d, list[Tensor]] = {}
    variances: dict[nn.BatchNorm2d, list[Tensor]] = {}
    for here, mean_C, var_C in zip(normed, mean_MC.unbind(), (var_MC * (n / (n - 1))).unbind(), strict=True):
        if here.norm is not None and here.norm.training and here.norm.running_mean is not None:
            means.setdefault(here.norm, []).append(mean_C[here.first : here.end])
            variances.setdefault(here.norm, []).append(var_C[here.first : here.end])
    if not means:
        return
    running = [_mean(norm) for norm in means] + [_var(norm) for norm in means]
    seen = [torch.cat(t) if len(t) > 1 else t[0] for t in (*means.values(), *variances.values())]
    rates = [norm.momentum or 0.0 for norm in means] * 2
    torch._foreach_mul_(running, [1.0 - rate for rate in rates])
    torch._foreach_mul_(seen, rates)
    torch._foreach_add_(running, seen)
    torch._foreach_add_([norm.num_batches_tracked for norm in means if norm.num_batches_tracked is not None], 1)
