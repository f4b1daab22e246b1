"""Depthwise convolutions of a whole bank, with the backward pass that CPU libraries lack."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def same_padding(kernel: int, dilation: int) -> int:
    """The padding that keeps the size at stride 1."""
    return dilation * (kernel // 2)


def convolve(x_BEHW: Tensor, weight_E1kk: Tensor, stride: int, dilation: int) -> Tensor:
    """Convolve every channel with its own kernel; padded so that stride 1 keeps the size. Channels-last."""
    padding = same_padding(weight_E1kk.shape[-1], dilation)
    return F.conv2d(x_BEHW, weight_E1kk, None, stride, padding, dilation, weight_E1kk.shape[0])


def gradients(
    g_BEHW: Tensor,
    x_BEHW: Tensor | None,
    weight_E1kk: Tensor,
    size: Sequence[int],
    geometry: tuple[int, int],
    wants: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and of the kernels, as far as wanted; x, of the given size, is needed for the latter alone.
    ``geometry``: stride and dilation."""
    stride, dilation = geometry
    padding = same_padding(weight_E1kk.shape[-1], dilation)
    g_BEHW = spread(g_BEHW.contiguous(memory_format=torch.channels_last), size, stride)
    of_x = input_gradient(g_BEHW, weight_E1kk, padding, dilation) if wants[0] else None
    if not wants[1]:
        return of_x, None
    assert x_BEHW is not None
    return of_x, weight_gradient(g_BEHW, x_BEHW, weight_E1kk, padding, dilation)


def input_gradient(g_BCHW: Tensor, weight_C1kk: Tensor, padding: int, dilation: int) -> Tensor:
    """Gradient of a depthwise convolution's input at stride 1: a convolution with the flipped kernel, far faster than
    the library's own."""
    return F.conv2d(g_BCHW, weight_C1kk.flip(2, 3), None, 1, padding, dilation, weight_C1kk.shape[0])


def spread(g_BCHW: Tensor, size: Sequence[int], stride: int) -> Tensor:
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
