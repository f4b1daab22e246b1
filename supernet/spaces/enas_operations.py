"""The operations of ENAS's macro space, as plain modules."""

from __future__ import annotations

from torch import nn

from supernet.spaces.ops import Norm, register_operation

ENAS_OPERATIONS = (
    "enas_conv_3x3",
    "enas_sep_conv_3x3",
    "enas_conv_5x5",
    "enas_sep_conv_5x5",
    "enas_avg_pool_3x3",
    "enas_max_pool_3x3",
)
"""The operations of ENAS (arXiv:1802.03268), section 2.3, in the order of the published code's branches."""


class EnasOperation(nn.Sequential):
    """A 1x1 convolution, batch norm and ReLU, then what gives the operation its name.

    ENAS (arXiv:1802.03268), section 2.3, ``_conv_branch`` and ``_pool_branch`` of the published code: a convolution is
    followed by batch norm and ReLU again, and a separable one is applied once; a pool has nothing behind it.
    """

    def __init__(self, channels: int, norm: Norm, *own: nn.Module) -> None:
        super().__init__(nn.Conv2d(channels, channels, 1, bias=False), norm(channels), nn.ReLU(), *own)


def _conv(channels: int, stride: int, norm: Norm, kernel: int, *, separable: bool) -> EnasOperation:
    groups = channels if separable else 1
    conv: list[nn.Module] = [
        nn.Conv2d(channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    ]
    conv += [nn.Conv2d(channels, channels, 1, bias=False)] if separable else []
    return EnasOperation(channels, norm, *conv, norm(channels), nn.ReLU())


register_operation("enas_conv_3x3", lambda channels, stride, norm: _conv(channels, stride, norm, 3, separable=False))
register_operation("enas_sep_conv_3x3", lambda channels, stride, norm: _conv(channels, stride, norm, 3, separable=True))
register_operation("enas_conv_5x5", lambda channels, stride, norm: _conv(channels, stride, norm, 5, separable=False))
register_operation("enas_sep_conv_5x5", lambda channels, stride, norm: _conv(channels, stride, norm, 5, separable=True))
register_operation(
    "enas_avg_pool_3x3",
    lambda channels, stride, norm: EnasOperation(
        channels, norm, nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
    ),
)
register_operation(
    "enas_max_pool_3x3",
    lambda channels, stride, norm: EnasOperation(channels, norm, nn.MaxPool2d(3, stride, padding=1)),
)
