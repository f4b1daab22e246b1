"""Depthwise convolutions of a whole bank, with the backward pass that CPU libraries lack."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise(
    x_BCHW: Tensor, tiled_BEHW: Tensor, weight_E1kk: Tensor, stride: int, dilation: int, centred: bool
) -> tuple[Tensor, Tensor | None]:
    """Convolve x with M depthwise kernels at once; where ``centred``, take the mean off every channel of the result.

    ``weight_E1kk`` holds M kernels for each of the C channels, kernel by kernel (E = M * C), and ``tiled_BEHW`` is x
    repeated M times, so that kernels of several kinds share one copy. Convolution and mean are linear, so that the
    mean of the result is known before it exists, from the mean image of the batch: it goes in as the bias of the
    convolution, free of charge, and what comes out is centred: that is what keeps the Gram matrix of :mod:`.fold`
    precise.

    Returns z_BEHW and what was taken off, mean_E. The mean counts as a constant in the backward pass, which is exact
    for what follows, a batch norm, whose output does not depend on it.
    """
    mean_E = None
    if centred:
        channels, padding = weight_E1kk.shape[0], same_padding(weight_E1kk.shape[-1], dilation)
        image_1EHW = tiled_BEHW.mean(0, keepdim=True).contiguous(memory_format=torch.channels_last)
        mean_1EHW = F.conv2d(image_1EHW, weight_E1kk.detach(), None, stride, padding, dilation, channels)
        mean_E = mean_1EHW.mean((0, 2, 3))
    z_BEHW: Tensor = _Depthwise.apply(x_BCHW, tiled_BEHW, weight_E1kk, mean_E, stride, dilation)
    return z_BEHW, mean_E


def same_padding(kernel: int, dilation: int) -> int:
    """The padding that keeps the size at stride 1."""
    return dilation * (kernel // 2)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BCHW: Tensor,
        tiled_BEHW: Tensor,
        weight_E1kk: Tensor,
        mean_E: Tensor | None,
        stride: int,
        dilation: int,
    ) -> Tensor:
        channels = weight_E1kk.shape[0]
        padding = same_padding(weight_E1kk.shape[-1], dilation)
        ctx.save_for_backward(tiled_BEHW, weight_E1kk)
        ctx.geometry = (x_BCHW.shape, stride, padding, dilation)
        bias_E = None if mean_E is None else -mean_E
        return F.conv2d(tiled_BEHW, weight_E1kk, bias_E, stride, padding, dilation, channels)

    @staticmethod
    def backward(ctx: Any, g_BEHW: Tensor) -> tuple[Tensor | None, None, Tensor | None, None, None, None]:
        tiled_BEHW, weight_E1kk = ctx.saved_tensors
        shape, stride, padding, dilation = ctx.geometry
        g_BEHW = g_BEHW.contiguous(memory_format=torch.channels_last)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_BEHW = input_gradient(g_BEHW, tiled_BEHW, weight_E1kk, stride, padding, dilation)
            batch, channels, rows, columns = shape
            grad_x = grad_BEHW
            if grad_BEHW.shape[1] != channels:
                grad_x = (
                    grad_BEHW.permute(0, 2, 3, 1).view(batch, rows, columns, -1, channels).sum(3).permute(0, 3, 1, 2)
                )
        if ctx.needs_input_grad[2]:
            grad_weight = weight_gradient(g_BEHW, tiled_BEHW, weight_E1kk, stride, padding, dilation)
        return grad_x, None, grad_weight, None, None, None


def input_gradient(
    g_BCHW: Tensor, x_BCHW: Tensor, weight_C1kk: Tensor, stride: int, padding: int, dilation: int
) -> Tensor:
    """Gradient of a depthwise convolution's input; at stride 1 a convolution with the flipped kernel, far faster."""
    if stride == 1:
        return F.conv2d(g_BCHW, weight_C1kk.flip(2, 3), None, 1, padding, dilation, weight_C1kk.shape[0])
    return _library_gradient(g_BCHW, x_BCHW, weight_C1kk, stride, padding, dilation, 0)


def weight_gradient(
    g_BCHW: Tensor, x_BCHW: Tensor, weight_C1kk: Tensor, stride: int, padding: int, dilation: int
) -> Tensor:
    """Gradient of a depthwise convolution's kernels."""
    return _library_gradient(g_BCHW, x_BCHW, weight_C1kk, stride, padding, dilation, 1)


def _library_gradient(
    g_BCHW: Tensor, x_BCHW: Tensor, weight_C1kk: Tensor, stride: int, padding: int, dilation: int, which: int
) -> Tensor:
    mask = [which == 0, which == 1, False]
    gradient: Tensor = torch.ops.aten.convolution_backward(
        g_BCHW,
        x_BCHW,
        weight_C1kk,
        None,
        [stride] * 2,
        [padding] * 2,
        [dilation] * 2,
        False,
        [0, 0],
        weight_C1kk.shape[0],
        mask,
    )[which]
    return gradient
