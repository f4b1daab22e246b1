"""Which modules a bank can stand in for, and what it needs to know of them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeGuard

from torch import nn

from supernet.spaces.banks.depthwise import same_padding
from supernet.spaces.ops import DilConv, FactorizedReduce, ReLUConvBN, SepConv

POOLS: dict[type, list[str]] = {kind: [*kind.__constants__] for kind in (nn.MaxPool2d, nn.AvgPool2d)}
"""The pools that banks know, with the names of what makes one differ from another."""

Geometry = tuple[int, int, int]
"""Kernel, stride, dilation: square, and padded so that stride 1 keeps the size."""


@dataclass(frozen=True)
class Block:
    """ReLU, depthwise convolution, pointwise convolution, batch norm."""

    depthwise: nn.Conv2d
    pointwise: nn.Conv2d
    norm: nn.BatchNorm2d
    geometry: Geometry


@dataclass(frozen=True)
class Chain:
    """One or more blocks in a row: a separable or a dilated convolution."""

    blocks: tuple[Block, ...]

    @property
    def norms(self) -> tuple[nn.BatchNorm2d, ...]:
        return tuple(block.norm for block in self.blocks)

    @property
    def key(self) -> Hashable:
        return tuple(block.geometry for block in self.blocks)


@dataclass(frozen=True)
class Dense:
    """ReLU, one convolution over all channels, batch norm."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    geometry: Geometry

    @property
    def norms(self) -> tuple[nn.BatchNorm2d, ...]:
        return (self.norm,)

    @property
    def key(self) -> Hashable:
        return "dense", self.geometry


@dataclass(frozen=True)
class Reduce:
    """A factorized reduction."""

    module: FactorizedReduce
    key = "reduce"

    @property
    def norms(self) -> tuple[nn.BatchNorm2d, ...]:
        return (self.module.bn,)


@dataclass(frozen=True)
class Shared:
    """Nothing of its own but running statistics, so that all edges out of a state share its output: the identity, a
    pool, a pool and its norm without affine parameters."""

    pool: nn.Module | None
    norm: nn.BatchNorm2d | None

    @property
    def norms(self) -> tuple[nn.BatchNorm2d, ...]:
        return () if self.norm is None else (self.norm,)

    @property
    def key(self) -> Hashable:
        return type(self.pool), *(getattr(self.pool, name) for name in POOLS.get(type(self.pool), ()))


Known = Chain | Dense | Reduce | Shared


def recognise(module: nn.Module) -> Known | None:
    """What a bank can do in place of this module; None where it has to be called."""
    kind = type(module)
    if kind is nn.Identity:
        return Shared(None, None)
    if kind in POOLS:
        return Shared(module, None) if _keeps_size(module) else None
    if isinstance(module, FactorizedReduce):
        same = kind is FactorizedReduce and module.conv_1.in_channels == module.bn.num_features
        return Reduce(module) if same and _is_plain_norm(module.bn) else None
    if kind is nn.Sequential and len(layers := list(module.children())) == 2 and type(layers[0]) in POOLS:
        pool, norm = layers
        return Shared(pool, norm) if _keeps_size(pool) and _is_plain_norm(norm) and not norm.affine else None
    if kind is ReLUConvBN:
        return _dense(*list(module.children())[1:])
    if kind in (SepConv, DilConv):
        layers = list(module.children())
        blocks = [_block(*layers[i + 1 : i + 4]) for i in range(0, len(layers), 4)]
        known = tuple(block for block in blocks if block is not None)
        return Chain(known) if len(known) == len(blocks) else None
    return None


def product_and_norm(module: nn.Module) -> tuple[nn.Conv2d, nn.BatchNorm2d] | None:
    """Of ``ReLUConvBN`` with a kernel of 1, of any numbers of channels; None for everything else."""
    if type(module) is not ReLUConvBN:
        return None
    _, conv, norm = module.children()
    if not isinstance(conv, nn.Conv2d) or _geometry(conv, 1) != (1, 1, 1) or not _is_plain_norm(norm):
        return None
    return conv, norm


def settings(known: Known) -> Hashable:
    """What the norms of a bank must have in common, as it is now."""
    return tuple((n.eps, n.momentum, n.affine, n.running_mean is None, n.training) for n in known.norms)


def _keeps_size(pool: nn.Module) -> bool:
    """Whether a pool gives maps of the size that convolutions of its stride give."""
    assert isinstance(pool, nn.MaxPool2d | nn.AvgPool2d)
    kernel, padding, dilation = pool.kernel_size, pool.padding, getattr(pool, "dilation", 1)
    if not isinstance(kernel, int) or not isinstance(padding, int) or pool.ceil_mode:
        return False
    return kernel == 2 * padding + 1 and dilation in (1, (1, 1))


def _is_plain_norm(norm: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    return type(norm) is nn.BatchNorm2d and norm.momentum is not None


def _geometry(conv: nn.Module, groups: int) -> Geometry | None:
    """None for what is not a convolution of this form without bias."""
    if type(conv) is not nn.Conv2d or conv.groups != groups or conv.bias is not None or conv.padding_mode != "zeros":
        return None
    kernel, stride, dilation = conv.kernel_size[0], conv.stride[0], conv.dilation[0]
    padding = same_padding(kernel, dilation)
    found = (conv.kernel_size, conv.stride, conv.dilation, conv.padding)
    square = tuple((n, n) for n in (kernel, stride, dilation, padding))
    return (kernel, stride, dilation) if found == square and kernel % 2 == 1 else None


def _dense(conv: nn.Module, norm: nn.Module) -> Dense | None:
    geometry = _geometry(conv, 1)
    if geometry is None or not isinstance(conv, nn.Conv2d) or not _is_plain_norm(norm):
        return None
    return Dense(conv, norm, geometry) if conv.in_channels == conv.out_channels else None


def _block(depthwise: nn.Module, pointwise: nn.Module, norm: nn.Module) -> Block | None:
    if not isinstance(depthwise, nn.Conv2d) or not isinstance(pointwise, nn.Conv2d) or not _is_plain_norm(norm):
        return None
    geometry = _geometry(depthwise, depthwise.in_channels)
    if geometry is None or _geometry(pointwise, 1) != (1, 1, 1):
        return None
    same = depthwise.in_channels == depthwise.out_channels == pointwise.out_channels
    return Block(depthwise, pointwise, norm, geometry) if same else None
