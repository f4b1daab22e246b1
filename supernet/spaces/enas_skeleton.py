"""The network around the layers of ENAS's macro space, which supernet and child share, and the layers of each.

States are counted from the stem, 0; layer l makes state l. After layers L // 3 and 2 * (L // 3), of L, all states
before are halved, each by a factorized reduction of its own, as in the published code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from supernet.spaces.cell import MixedOp, drop_samples
from supernet.spaces.ops import FactorizedReduce, Norm
from supernet.types import CellMixing

Read = Callable[[int], Tensor]
"""``read(state)``: an earlier state at the size of the present layer."""

BuildLayer = Callable[[int, int], nn.Module]
"""``build_layer(layer, channels)``; it is called as ``layer(read, context)``."""


def pool_layers(layers: int) -> tuple[int, ...]:
    """After which layers the image halves: L // 3 and 2 * (L // 3); never with less than three of them."""
    third = layers // 3
    return (third, 2 * third) if third else ()


class Skeleton(nn.Module):
    """Stem, layers, reductions; global average pooling, dropout, classifier.

    ``reads`` are the states that each layer may read: what none of them reads at a size has no reduction to it, and a
    reduction is computed when its state is read. ``channels`` are those of the three sizes.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        channels: Sequence[int],
        reads: Sequence[Iterable[int]],
        build_layer: BuildLayer,
        norm: Norm,
        *,
        dropout: float,
    ) -> None:
        super().__init__()
        pools = pool_layers(len(reads))
        # The size at which each state is made: the image, half of it, or a quarter.
        self.made = [0, *(sum(pool < layer for pool in pools) for layer in range(1, len(reads) + 1))]
        self.stem = nn.Sequential(nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False), norm(channels[0]))
        self.layers = nn.ModuleList(build_layer(n, channels[self.made[n]]) for n in range(1, len(reads) + 1))
        wanted = {
            (level, state)
            for layer, states in enumerate(reads, start=1)
            for state in states
            for level in range(self.made[state] + 1, self.made[layer] + 1)
        }
        self.reductions = nn.ModuleDict(
            {
                f"{level}_{state}": FactorizedReduce(channels[level - 1], channels[level], norm, relu=False)
                for level, state in sorted(wanted)
            }
        )
        self.dropout = dropout
        self.classifier = nn.Linear(channels[self.made[-1]], classes)

    def forward(self, x_BCHW: Tensor, context: Any) -> Tensor:
        """``logits_BK`` over classes; ``context`` is what the layers need to know."""
        states = {(0, 0): self.stem(x_BCHW)}
        for n, layer in enumerate(self.layers, start=1):
            x_BCHW = layer(partial(self._read, states, self.made[n]), context)
            states[self.made[n], n] = x_BCHW
        features_BC = F.dropout(reduce(x_BCHW, "b c h w -> b c", "mean"), self.dropout, self.training)
        logits_BK: Tensor = self.classifier(features_BC)
        return logits_BK

    def _read(self, states: dict[tuple[int, int], Tensor], level: int, state: int) -> Tensor:
        if (level, state) not in states:
            reduction = self.reductions[f"{level}_{state}"]
            states[level, state] = reduction(self._read(states, level - 1, state))
        return states[level, state]


@dataclass(frozen=True)
class LayerMixing:
    """p of the two groups, as the layers of a supernet see it."""

    layer: CellMixing
    skip: CellMixing


class MixedLayer(nn.Module):
    """A layer of the supernet; ``skips`` are its decisions in the group "skip" and the states that they read."""

    def __init__(
        self, layer: int, operations: Sequence[str], skips: Sequence[tuple[int, int]], channels: int, norm: Norm
    ) -> None:
        super().__init__()
        self.layer, self.skips = layer, tuple(skips)
        self.op = MixedOp(operations, [True] * len(operations), channels, 1, norm, normalise=False)
        self.norm = norm(channels) if layer > 1 else nn.Identity()

    def forward(self, read: Read, p: LayerMixing) -> Tensor:
        n = self.layer - 1
        total = self.op(read(n), p.layer.op_NK[n], p.layer.options(n), p.layer.dropout_K)
        for n, state in self.skips:
            if 1 in p.skip.options(n):  # "on"; "off" gives nothing
                total = total + p.skip.op_NK[n, 1] * read(state)
        normed_BCHW: Tensor = self.norm(total)
        return normed_BCHW


class ChosenLayer(nn.Module):
    """A layer of the child: an operation on the state before, the skip connections from ``skips``, batch norm behind
    the sum. As published, the first layer, which has no skips to choose, has no such norm."""

    def __init__(self, layer: int, operation: nn.Module, skips: Sequence[int], channels: int, norm: Norm) -> None:
        super().__init__()
        self.layer, self.skips = layer, tuple(skips)
        self.op = operation
        self.norm = norm(channels) if layer > 1 else nn.Identity()

    def forward(self, read: Read, drop_path: float) -> Tensor:
        total: Tensor = self.op(read(self.layer - 1))
        if drop_path > 0.0 and self.training and self.skips:
            total = drop_samples(total, drop_path)
        for state in self.skips:
            total = total + read(state)
        normed_BCHW: Tensor = self.norm(total)
        return normed_BCHW
