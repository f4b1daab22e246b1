"""What the layers of a chain can be made of: activations, initialisations, pools, connections."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "tanh": torch.tanh,
}

INITS: dict[str, Callable[[Tensor], Tensor]] = {
    "kaiming_normal": nn.init.kaiming_normal_,
    "kaiming_uniform": nn.init.kaiming_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "xavier_uniform": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
}
"""They draw a weight of shape (CO, CI, rows, columns) in place, with the defaults of torch."""

STRIDE = "stride"
POOLS = ("max", "avg", STRIDE)
"""How a stage after the first halves the image: a pool before its first convolution, or that convolution strides."""

PLAIN, RESIDUAL = "plain", "residual"
CONNECTIONS = (PLAIN, RESIDUAL)


def pool(name: str, x_BCHW: Tensor) -> Tensor:
    """Halve the image by a 2x2 pool, or for ``stride`` as a strided 1x1 convolution sees it; odd sizes round up."""
    if name == "max":
        return F.max_pool2d(x_BCHW, 2, ceil_mode=True)
    if name == "avg":
        return F.avg_pool2d(x_BCHW, 2, ceil_mode=True, count_include_pad=False)
    assert name == STRIDE
    return x_BCHW[:, :, ::2, ::2]


def fit(x_BCHW: Tensor, channels: int) -> Tensor:
    """The identity between different widths: the first channels of x, or x and zeros, which is option A of ResNet
    (arXiv:1512.03385), section 3.3."""
    missing = channels - x_BCHW.shape[1]
    return F.pad(x_BCHW, (0, 0, 0, 0, 0, missing)) if missing > 0 else x_BCHW[:, :channels]


def channels_of(width: float, channels: int, stage: int) -> int:
    """Channels of a layer: ``width`` times those of its stage, which double from one stage to the next."""
    return max(1, int(width * channels * 2**stage + 0.5))
