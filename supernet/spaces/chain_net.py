"""The layers of a chain: those of the supernet, which p slices and mixes, and those of a child.

A layer is connect(activate(norm(convolve(pool(x))))), cut to its width. A mixed layer has one convolution at the
largest width and kernel for every initialisation:

* width: the first channels of the output, so the first rows of the weight; a dense p weighs channel masks, which is the
  weighted sum over widths exactly, since a channel does not depend on those that are cut off;
* kernel: the centre of the largest one; a dense p weighs spatial masks of the weight, and init weighs the weights: both
  are weighted sums of convolutions exactly, since a convolution is linear in its weight;
* pool, activation, connection, depth: weighted sums of outputs.

The norm stands behind the sum over kernels, initialisations and pools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.spaces.cell import drop_samples
from supernet.spaces.chain_genotype import Layer
from supernet.spaces.chain_options import ACTIVATIONS, INITS, RESIDUAL, STRIDE, fit, pool
from supernet.spaces.ops import Norm
from supernet.types import CellMixing


@dataclass(frozen=True)
class Share:
    """One decision of p: the options to evaluate, and ``p_K``."""

    options: Sequence[int]
    p_K: Tensor

    @classmethod
    def of(cls, p: CellMixing, n: int) -> Share:
        """Decision n."""
        return cls(p.options(n), p.op_NK[n])

    def sum(self, of: Callable[[int], Tensor]) -> Tensor:
        """Sum over options k of p_k of(k)."""
        total: Tensor | None = None
        for k in self.options:
            each = self.p_K[k] * of(k)
            total = each if total is None else total + each
        assert total is not None, "a decision has an option"
        return total


@dataclass(frozen=True)
class Choices:
    """The options that the layers of a supernet have; widths, as channels, and kernels from small to large."""

    widths: tuple[int, ...]
    kernels: tuple[int, ...]
    activations: tuple[str, ...]
    pools: tuple[str, ...]
    inits: tuple[str, ...]
    connections: tuple[str, ...]


class MixedLayer(nn.Module):
    """A layer of the supernet; ``shares`` has a :class:`Share` for every kind of decision about it."""

    width_masks_KC: Tensor
    kernel_masks_KHW: Tensor

    def __init__(self, channels_in: int, choices: Choices, norm: Norm) -> None:
        super().__init__()
        self.choices = choices
        channels, kernel = choices.widths[-1], choices.kernels[-1]
        self.weights = nn.ParameterList(
            nn.Parameter(INITS[name](torch.empty(channels, channels_in, kernel, kernel))) for name in choices.inits
        )
        self.norm = norm(channels)
        place = torch.arange(channels)
        widths = torch.stack([(place < width).float() for width in choices.widths])
        kernels = torch.zeros(len(choices.kernels), kernel, kernel)
        for k, size in enumerate(choices.kernels):
            margin = (kernel - size) // 2
            kernels[k, margin : margin + size, margin : margin + size] = 1.0
        self.register_buffer("width_masks_KC", widths, persistent=False)
        self.register_buffer("kernel_masks_KHW", kernels, persistent=False)

    def forward(self, x_BCHW: Tensor, shares: dict[str, Share]) -> Tensor:
        width, activation, connection = shares["width"], shares["activation"], shares["connection"]
        channels = max(self.choices.widths[k] for k in width.options)
        z_BCHW = self._norm(self._convolve(x_BCHW, channels, shares))
        y_BCHW = activation.sum(lambda a: ACTIVATIONS[self.choices.activations[a]](z_BCHW))
        joined_BCHW = connection.sum(lambda c: self._connect(c, y_BCHW, x_BCHW, shares))
        mask_C = width.sum(lambda k: self.width_masks_KC[k, :channels])
        return joined_BCHW * mask_C[:, None, None]

    def _weight(self, channels: int, channels_in: int, kernel: Share, init: Share) -> Tensor:
        """The weight at the largest width and kernel that are asked for."""
        size, largest = max(self.choices.kernels[k] for k in kernel.options), self.choices.kernels[-1]
        inside = slice((largest - size) // 2, (largest + size) // 2)
        w_OIHW = init.sum(lambda i: self.weights[i][:channels, :channels_in, inside, inside])
        return w_OIHW * kernel.sum(lambda k: self.kernel_masks_KHW[k, inside, inside])

    def _convolve(self, x_BCHW: Tensor, channels: int, shares: dict[str, Share]) -> Tensor:
        w_OIHW = self._weight(channels, x_BCHW.shape[1], shares["kernel"], shares["init"])
        padding = w_OIHW.shape[-1] // 2
        if "pool" not in shares:
            return F.conv2d(x_BCHW, w_OIHW, padding=padding)
        names, pools = self.choices.pools, shares["pool"]
        real = Share([k for k in pools.options if names[k] != STRIDE], pools.p_K)
        total: Tensor | None = None
        if real.options:
            total = F.conv2d(real.sum(lambda k: pool(names[k], x_BCHW)), w_OIHW, padding=padding)
        for k in (k for k in pools.options if names[k] == STRIDE):
            strided = pools.p_K[k] * F.conv2d(x_BCHW, w_OIHW, stride=2, padding=padding)
            total = strided if total is None else total + strided
        assert total is not None
        return total

    def _norm(self, z_BCHW: Tensor) -> Tensor:
        """The batch norm of the first channels: its buffers are views, so the statistics of the others stay."""
        norm, channels = self.norm, z_BCHW.shape[1]
        tracked = (norm.running_mean, norm.running_var)
        mean_C, var_C = (None if t is None else t[:channels] for t in tracked)
        assert norm.momentum is not None
        batch = self.training or mean_C is None
        return F.batch_norm(z_BCHW, mean_C, var_C, training=batch, momentum=norm.momentum, eps=norm.eps)

    def _connect(self, c: int, y_BCHW: Tensor, x_BCHW: Tensor, shares: dict[str, Share]) -> Tensor:
        if self.choices.connections[c] != RESIDUAL:
            return y_BCHW
        if "pool" in shares:
            x_BCHW = shares["pool"].sum(lambda k, x=x_BCHW: pool(self.choices.pools[k], x))  # type: ignore[misc]
        return y_BCHW + fit(x_BCHW, y_BCHW.shape[1])


class ChosenLayer(nn.Module):
    """A layer of the child. Drop path drops what a residual connection goes past."""

    def __init__(self, channels_in: int, channels: int, layer: Layer, pool: str | None, norm: Norm) -> None:
        super().__init__()
        stride = 2 if pool == STRIDE else 1
        self.conv = nn.Conv2d(channels_in, channels, layer.kernel, stride, padding=layer.kernel // 2, bias=False)
        INITS[layer.init](self.conv.weight)
        self.norm = norm(channels)
        self.layer, self.pool = layer, pool

    def forward(self, x_BCHW: Tensor, drop_path: float) -> Tensor:
        shortcut_BCHW = x_BCHW if self.pool is None else pool(self.pool, x_BCHW)
        y_BCHW = ACTIVATIONS[self.layer.activation](
            self.norm(self.conv(x_BCHW if self.pool == STRIDE else shortcut_BCHW))
        )
        if self.layer.connection != RESIDUAL:
            return y_BCHW
        if drop_path > 0.0 and self.training:
            y_BCHW = drop_samples(y_BCHW, drop_path)
        return y_BCHW + fit(shortcut_BCHW, y_BCHW.shape[1])
