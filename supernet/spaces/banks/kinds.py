"""Which modules a bank can stand in for, and what it needs to know of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

from torch import nn

from supernet.spaces.banks.depthwise import same_padding
from supernet.spaces.ops import DilConv, FactorizedReduce, SepConv


@dataclass(frozen=True)
class Block:
    """ReLU, depthwise convolution, pointwise convolution, batch norm."""

    depthwise: nn.Conv2d
    pointwise: nn.Conv2d
    norm: nn.BatchNorm2d

    @property
    def geometry(self) -> tuple[int, int, int]:
        """Kernel, stride, dilation."""
        return self.depthwise.kernel_size[0], self.depthwise.stride[0], self.depthwise.dilation[0]


@dataclass(frozen=True)
class Chain:
    """One or more blocks in a row: a separable or a dilated convolution."""

    blocks: tuple[Block, ...]

    @property
    def key(self) -> object:
        return tuple(block.geometry for block in self.blocks)


@dataclass(frozen=True)
class Pool:
    """A pool and its norm without affine parameters: nothing of its own, so all edges out of a state share it."""

    pool: nn.Module
    norm: nn.BatchNorm2d

    @property
    def key(self) -> object:
        return repr(self.pool)


@dataclass(frozen=True)
class Skip:
    """The identity."""

    key = "skip"


@dataclass(frozen=True)
class Reduce:
    """A factorized reduction: two products, one for each half of the output channels."""

    module: FactorizedReduce
    key = "reduce"


Known = Chain | Pool | Skip | Reduce


def recognise(module: nn.Module) -> Known | None:
    """What a bank can do in place of this module; None where it has to be called."""
    if type(module) is nn.Identity:
        return Skip()
    if type(module) is FactorizedReduce:
        return Reduce(module) if _is_plain_norm(module.bn) else None
    if type(module) in (SepConv, DilConv):
        layers = list(module.children())
        blocks = [_block(*layers[i + 1 : i + 4]) for i in range(0, len(layers), 4)]
        return Chain(tuple(known)) if len(known := [b for b in blocks if b is not None]) == len(blocks) else None
    if type(module) is nn.Sequential and len(module) == 2 and type(module[0]) in (nn.MaxPool2d, nn.AvgPool2d):
        norm = module[1]
        return Pool(module[0], norm) if _is_plain_norm(norm) and not norm.affine else None
    return None


def _is_plain_norm(norm: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    return type(norm) is nn.BatchNorm2d and norm.momentum is not None


def _block(depthwise: nn.Module, pointwise: nn.Module, norm: nn.Module) -> Block | None:
    if type(depthwise) is not nn.Conv2d or type(pointwise) is not nn.Conv2d or not _is_plain_norm(norm):
        return None
    padding = same_padding(depthwise.kernel_size[0], depthwise.dilation[0])
    known = (
        depthwise.groups == depthwise.in_channels == depthwise.out_channels == pointwise.out_channels
        and depthwise.padding == (padding, padding)
        and depthwise.bias is None
        and pointwise.bias is None
        and pointwise.kernel_size == (1, 1)
    )
    return Block(depthwise, pointwise, norm) if known else None
