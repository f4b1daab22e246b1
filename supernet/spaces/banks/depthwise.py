"""Depthwise convolutions of a whole bank, with the backward pass that CPU libraries lack."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def depthwise(
    x_BCHW: Tensor, tiled_BEHW: Tensor, weight_E1kk: Tensor, stride: int, dilation: int, centred: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Convolve x with M depthwise kernels at once; where ``centred``, take the mean off every channel of the result.

    ``weight_E1kk`` holds M kernels for each of the C channels, kernel by kernel (E = M * C), and ``tiled_BEHW`` is x
    repeated M times, so that kernels of several kinds share one copy. The mean goes in as the bias of the convolution,
    free of charge, and what comes out is centred: that is what keeps the Gram matrix of :mod:`.fold` precise.

    Returns z_BEHW, what was taken off, and the mean that is left because of rounding, both in float64 and per channel.
    The mean counts as a constant in the backward pass, which is exact for what follows, a batch norm, whose output does
    not depend on it.
    """
    bias_E = taken_E = left_E = None
    if centred:
        mean_E = convolved_mean(x_BCHW.detach(), weight_E1kk.detach(), stride, dilation)
        bias_E = -mean_E.to(x_BCHW.dtype)
        taken_E = -bias_E.double()
        left_E = mean_E - taken_E
    z_BEHW: Tensor = _Depthwise.apply(x_BCHW, tiled_BEHW, weight_E1kk, bias_E, stride, dilation)
    return z_BEHW, taken_E, left_E


def convolved_mean(x_BCHW: Tensor, weight_E1kk: Tensor, stride: int, dilation: int) -> Tensor:
    """The mean over batch and pixels of a depthwise convolution, in float64, without the convolution.

    Both are linear: every tap contributes its weight times the sum of those pixels of the mean image that it reads,
    R X Rᵀ with the rows and columns that each tap reads.
    """
    _, channels, height, width = x_BCHW.shape
    kernel = weight_E1kk.shape[-1]
    x_BHWC = x_BCHW.permute(0, 2, 3, 1)
    dtype = torch.promote_types(x_BCHW.dtype, torch.float32)
    image_HWC = x_BHWC.reshape(x_BHWC.shape[0], -1).mean(0, dtype=dtype).view(height, width, channels).double()
    rows_kH = _reads(height, kernel, stride, dilation, x_BCHW.device)
    columns_kW = _reads(width, kernel, stride, dilation, x_BCHW.device)
    window_Ckk = rows_kH @ image_HWC.permute(2, 0, 1) @ columns_kW.mT
    sum_MC = (weight_E1kk.double().view(-1, channels, kernel, kernel) * window_Ckk).sum((2, 3))
    return sum_MC.flatten() / (-(-height // stride) * -(-width // stride))


@functools.lru_cache(maxsize=256)
def _reads(size: int, kernel: int, stride: int, dilation: int, device: torch.device) -> Tensor:
    """Which of ``size`` positions each tap reads in all: [kernel, size], of 0 and 1."""
    tap_k1 = (torch.arange(kernel)[:, None] - kernel // 2) * dilation
    output_kH = torch.arange(size) - tap_k1
    reads_kH = (output_kH >= 0) & (output_kH < size) & (output_kH % stride == 0)
    return reads_kH.to(device, torch.float64)


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
        bias_E: Tensor | None,
        stride: int,
        dilation: int,
    ) -> Tensor:
        channels = weight_E1kk.shape[0]
        padding = same_padding(weight_E1kk.shape[-1], dilation)
        ctx.save_for_backward(tiled_BEHW, weight_E1kk)
        ctx.geometry = (x_BCHW.shape, stride, padding, dilation)
        return F.conv2d(tiled_BEHW, weight_E1kk, bias_E, stride, padding, dilation, channels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BEHW: Tensor) -> tuple[Tensor | None, None, Tensor | None, None, None, None]:
        tiled_BEHW, weight_E1kk = ctx.saved_tensors
        shape, stride, padding, dilation = ctx.geometry
        g_BEHW = spread(g_BEHW.contiguous(memory_format=torch.channels_last), tiled_BEHW.shape, stride)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_BEHW = input_gradient(g_BEHW, weight_E1kk, padding, dilation)
            batch, channels, rows, columns = shape
            grad_x = grad_BEHW
            if grad_BEHW.shape[1] != channels:
                grad_x = (
                    grad_BEHW.permute(0, 2, 3, 1).view(batch, rows, columns, -1, channels).sum(3).permute(0, 3, 1, 2)
                )
        if ctx.needs_input_grad[2]:
            grad_weight = weight_gradient(g_BEHW, tiled_BEHW, weight_E1kk, padding, dilation)
        return grad_x, None, grad_weight, None, None, None


def input_gradient(g_BCHW: Tensor, weight_C1kk: Tensor, padding: int, dilation: int) -> Tensor:
    """Gradient of a depthwise convolution's input at stride 1: a convolution with the flipped kernel, far faster than
    the library's own."""
    return F.conv2d(g_BCHW, weight_C1kk.flip(2, 3), None, 1, padding, dilation, weight_C1kk.shape[0])


def spread(g_BCHW: Tensor, size: torch.Size, stride: int) -> Tensor:
    """The gradient at stride 1 of which g is the strided part: a strided convolution is one at stride 1 of which some
    pixels are kept, so that both its gradients are those at stride 1, with zeros for the other pixels. Still faster
    than the library's strided ones."""
    if stride == 1:
        return g_BCHW
    wide = g_BCHW.new_zeros(size[0], size[2], size[3], size[1]).permute(0, 3, 1, 2)
    wide[:, :, ::stride, ::stride].copy_(g_BCHW)
    return wide


def weight_gradient(g_BCHW: Tensor, x_BCHW: Tensor, weight_C1kk: Tensor, padding: int, dilation: int) -> Tensor:
    """Gradient of a depthwise convolution's kernels at stride 1.

    oneDNN has a kernel for this that is ten times as fast as its general one, but only for taps at most 3 wide that
    are not dilated and padded by at most 1; the others are brought into that form.
    """
    if x_BCHW.device.type == "cpu":
        if dilation == 2 and x_BCHW.shape[2] % 2 == 0 and x_BCHW.shape[3] % 2 == 0:
            return _dilated_weight_gradient(g_BCHW, x_BCHW, weight_C1kk)
        if dilation == 1 and weight_C1kk.shape[-1] == 5:
            return _wide_weight_gradient(g_BCHW, x_BCHW, weight_C1kk)
    return _library_gradient(g_BCHW, x_BCHW, weight_C1kk, padding, dilation)


def _dilated_weight_gradient(g_BCHW: Tensor, x_BCHW: Tensor, weight_C1kk: Tensor) -> Tensor:
    """With dilation 2, pixels of even and odd rows and columns never meet: in channels-last format, half the columns
    with twice the channels are the same memory; rows take a copy, to half the rows of twice the batch."""
    channels, _, kernel, _ = weight_C1kk.shape
    g, x = _phases(g_BCHW), _phases(x_BCHW)
    gradient = weight_gradient(g, x, weight_C1kk.repeat(2, 1, 1, 1), kernel // 2, 1)
    return gradient.view(2, channels, 1, kernel, kernel).sum(0)


def _phases(x_BCHW: Tensor) -> Tensor:
    batch, channels, height, width = x_BCHW.shape
    rows = x_BCHW.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width * channels).transpose(1, 2)
    return rows.reshape(2 * batch, height // 2, width // 2, 2 * channels).permute(0, 3, 1, 2)


def _wide_weight_gradient(g_BCHW: Tensor, x_BCHW: Tensor, weight_C1kk: Tensor) -> Tensor:
    """5 columns of taps as the left 3 and the right 3 of them, the one in the middle twice.

    The left taps see x with 2 columns of zeros before each row, the right ones with 2 columns after it: the same
    memory, looked at from 2 columns earlier on.
    """
    batch, channels, height, width = x_BCHW.shape
    shape = (batch, height + 4, width + 2, channels)
    memory = x_BCHW.new_empty(math.prod(shape) + 2 * channels)
    left, right = (memory[i : i + math.prod(shape)].view(shape).permute(0, 3, 1, 2) for i in (0, 2 * channels))
    for margin in (memory[: 2 * channels], right[:, :, :2], right[:, :, -2:], right[..., width:]):
        margin.zero_()
    right[:, :, 2:-2, :width].copy_(x_BCHW)
    taps = [_library_gradient(g_BCHW, x, weight_C1kk[..., :3], 0, 1) for x in (left, right)]
    return torch.cat([taps[0], taps[1][..., 1:]], dim=-1)


def _library_gradient(g_BCHW: Tensor, x_BCHW: Tensor, weight_C1kk: Tensor, padding: int, dilation: int) -> Tensor:
    gradient: Tensor = torch.ops.aten.convolution_backward(
        g_BCHW,
        x_BCHW,
        weight_C1kk,
        None,
        [1, 1],
        [padding] * 2,
        [dilation] * 2,
        False,
        [0, 0],
        weight_C1kk.shape[0],
        [False, True, False],
    )[1]
    return gradient
