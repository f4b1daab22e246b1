"""The candidate operations as plain modules: the readable truth that :mod:`supernet.spaces.banks` must equal.

DARTS (arXiv:1806.09055), section 3.1.1: convolutions are ReLU-Conv-BN, separable convolutions are applied twice,
dilated ones once; every operation keeps the channels and divides the image by ``stride``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Norm:
    """Makes the batch norms of a network: ``norm(channels)``.

    ``affine``: learn a scale and a shift (child: yes, supernet: no, as published). ``track``: keep running statistics
    and use them in eval mode; without, a norm always uses the statistics of its batch and has no buffers.
    """

    affine: bool
    track: bool

    def __call__(self, channels: int, *, affine: bool | None = None) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(
            channels, affine=self.affine if affine is None else affine, track_running_stats=self.track
        )


Build = Callable[[int, int, Norm], nn.Module]
"""Makes an operation: ``build(channels, stride, norm)``."""


@dataclass(frozen=True)
class Operation:
    """A row of the table of operations.

    ``normalise_in_supernet``: append a batch norm without affine parameters in the supernet only, as DARTS does for
    pools, so that an operation with no norm of its own has the scale of its rivals.
    """

    build: Build
    normalise_in_supernet: bool = False


OPERATIONS: dict[str, Operation] = {}


def register_operation(name: str, build: Build, *, normalise_in_supernet: bool = False) -> None:
    """Add an operation to the table, so that ``space.operations`` may name it.

    >>> register_operation("conv_1x1", lambda channels, stride, norm: nn.Conv2d(channels, channels, 1, stride))
    """
    OPERATIONS[name] = Operation(build, normalise_in_supernet)


class Zero(nn.Module):
    """``none``: no connection. The networks never call it; it exists so that a table row is a module."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.zeros_like(x_BCHW[:, :, :: self.stride, :: self.stride])


class Noise(nn.Module):
    """``noise``: Gaussian noise of the output's shape, with mean 0 and variance 1, whatever the input.

    RobustDARTS (arXiv:1909.09656), section 3, space S4: an operation that a search can only get wrong. It is drawn in
    training and evaluation from torch's global generator, which a search keys by the step.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.randn_like(x_BCHW[:, :, :: self.stride, :: self.stride])


class ReLUConvBN(nn.Sequential):
    """ReLU, convolution, batch norm: how a cell brings its inputs to its own number of channels, and an operation of
    NAS-Bench-201."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, norm: Norm, stride: int = 1) -> None:
        conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)
        super().__init__(nn.ReLU(), conv, norm(channels_out))


class FactorizedReduce(nn.Module):
    """Halve the image without losing pixels: two strided 1x1 convolutions, one of them shifted by a pixel, side by
    side.

    The published code needs even sizes; here an odd image is padded with a row and a column of zeros on the shifted
    side. ``relu`` comes first in DARTS, and not in ENAS.
    """

    def __init__(self, channels_in: int, channels_out: int, norm: Norm, *, relu: bool = True) -> None:
        super().__init__()
        self.relu = relu
        half = channels_out // 2
        self.conv_1 = nn.Conv2d(channels_in, half, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(channels_in, channels_out - half, 1, stride=2, bias=False)
        self.bn = norm(channels_out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = F.relu(x_BCHW) if self.relu else x_BCHW
        both_BCHW = torch.cat([self.conv_1(x_BCHW), self.conv_2(shift(x_BCHW))], dim=1)
        normed_BCHW: Tensor = self.bn(both_BCHW)
        return normed_BCHW


def shift(x_BCHW: Tensor) -> Tensor:
    """Drop the first row and column; keep ``ceil(size / 2)`` reachable by stride 2 also where the size is odd."""
    odd_h, odd_w = x_BCHW.shape[2] % 2, x_BCHW.shape[3] % 2
    shifted = x_BCHW[:, :, 1:, 1:]
    return F.pad(shifted, (0, odd_w, 0, odd_h)) if odd_h or odd_w else shifted


class DilConv(nn.Sequential):
    """ReLU, depthwise convolution with dilation 2, pointwise convolution, batch norm."""

    def __init__(self, channels: int, kernel: int, stride: int, norm: Norm) -> None:
        depthwise = nn.Conv2d(
            channels, channels, kernel, stride, padding=kernel - 1, dilation=2, groups=channels, bias=False
        )
        super().__init__(nn.ReLU(), depthwise, nn.Conv2d(channels, channels, 1, bias=False), norm(channels))


class SepConv(nn.Sequential):
    """ReLU, depthwise, pointwise, batch norm, twice; only the first depthwise convolution strides."""

    def __init__(self, channels: int, kernel: int, stride: int, norm: Norm) -> None:
        layers: list[nn.Module] = []
        for each_stride in (stride, 1):
            layers += [
                nn.ReLU(),
                nn.Conv2d(channels, channels, kernel, each_stride, kernel // 2, groups=channels, bias=False),
                nn.Conv2d(channels, channels, 1, bias=False),
                norm(channels),
            ]
        super().__init__(*layers)


def build_skip(channels: int, stride: int, norm: Norm) -> nn.Module:
    """Identity, or a factorized reduction where the cell strides."""
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, norm)


register_operation("none", lambda channels, stride, norm: Zero(stride))
register_operation("noise", lambda channels, stride, norm: Noise(stride))
register_operation(
    "max_pool_3x3", lambda channels, stride, norm: nn.MaxPool2d(3, stride, padding=1), normalise_in_supernet=True
)
register_operation(
    "avg_pool_3x3",
    lambda channels, stride, norm: nn.AvgPool2d(3, stride, padding=1, count_include_pad=False),
    normalise_in_supernet=True,
)
register_operation("skip_connect", build_skip)
register_operation("sep_conv_3x3", lambda channels, stride, norm: SepConv(channels, 3, stride, norm))
register_operation("sep_conv_5x5", lambda channels, stride, norm: SepConv(channels, 5, stride, norm))
register_operation("dil_conv_3x3", lambda channels, stride, norm: DilConv(channels, 3, stride, norm))
register_operation("dil_conv_5x5", lambda channels, stride, norm: DilConv(channels, 5, stride, norm))
register_operation("nor_conv_1x1", lambda channels, stride, norm: ReLUConvBN(channels, channels, 1, norm, stride))
register_operation("nor_conv_3x3", lambda channels, stride, norm: ReLUConvBN(channels, channels, 3, norm, stride))

DARTS_OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""PRIMITIVES of the DARTS cell space, in the published order."""

NASBENCH201_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""Operations of NAS-Bench-201 (Dong and Yang, ICLR 2020, arXiv:2001.00326), in the published order."""
