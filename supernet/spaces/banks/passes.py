"""The passes of ``passes.cpp``: what they compute, and what they are given.

Maps are y_BHWC, dense, in float32 or float64; ``moments`` are [3, C]: mean, variance (biased) and 1 / sigma of every
channel over a batch, so that a norm without affine parameters gives

    u = (y - mean) / sigma,    and its backward pass    (g - mean(g) - u * mean(g * u)) / sigma

for a gradient g of u. Images are shared out among torch's threads; how many there are changes no bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from supernet.spaces.banks.build import library

Geometry = tuple[int, int, int]
"""Kernel, stride, dilation."""

_NUMBERS = {torch.float32: "f32", torch.float64: "f64"}


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "images", "height", "width", "channels", "out_channels", "kernel", "stride", "dilation", "relu"
        )
    ]  # fmt: skip


class _Backward(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("g", "y", "moments", "g_sum", "gu_sum")),
        ("p", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("x", "x_moments", "kernels", "weight")),
        *((name, ctypes.c_void_p) for name in ("g_x", "x_sums", "g_kernels", "g_weight")),
        ("add", ctypes.c_int64),
    ]


def serve(x: Tensor) -> bool:
    """Whether there are passes for such maps."""
    return x.device.type == "cpu" and x.dtype in _NUMBERS and library() is not None


class Convolution(NamedTuple):
    """y = W conv(V, x): kernels V_C1kk one by one for every channel, padded so that stride 1 keeps the size, and the
    pointwise weight W_EC11. Without kernels, y = W x. ``relu``: of relu(x) in place of x."""

    kernels: Tensor | None
    weight: Tensor
    geometry: Geometry = (1, 1, 1)
    relu: bool = False

    def forward(self, x_BHWC: Tensor, x_moments: Tensor | None, eps: float | None) -> tuple[Tensor, Tensor | None]:
        """y, and, where ``eps`` is given, its moments. With moments of x, of relu(u) in its place."""
        shape = self._shape(x_BHWC)
        size = (shape.images, *(-(-n // shape.stride) for n in x_BHWC.shape[1:3]), shape.out_channels)
        y_BHWC = x_BHWC.new_empty(size)
        moments = None if eps is None else x_BHWC.new_empty(3, shape.out_channels)
        given = (_at(x_BHWC), _at(x_moments), _at(self.kernels), _at(self.weight), ctypes.c_double(eps or 0.0))
        _call("forward", x_BHWC.dtype, ctypes.byref(shape), *given, _at(y_BHWC), _at(moments))
        return y_BHWC, moments

    def backward(
        self, after: Norm, x_BHWC: Tensor, x_moments: Tensor | None, g_x: Tensor | None, *, of_x: bool, of_weights: bool
    ) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
        """The gradient of x, its sums, and the gradients of V and W, as far as they are wanted.

        With moments of x, its gradient is that of u, cut off by the ReLU, with its sums [2, C], of g and of g * u. Else
        it is added to ``g_x`` where that is given, and there are no sums.
        """
        add = g_x is not None
        if of_x and g_x is None:
            g_x = torch.empty_like(x_BHWC)
        sums = x_BHWC.new_empty(2, x_BHWC.shape[-1]) if of_x and x_moments is not None else None
        own = (self.kernels, self.weight)
        of_kernels, of_weight = (None if w is None or not of_weights else torch.empty_like(w) for w in own)
        arguments = _Backward(
            *(_at(t) for t in (after.g, after.y, after.moments, after.g_sum, after.gu_sum)),
            after.p,
            *(_at(t) for t in (x_BHWC, x_moments, self.kernels, self.weight)),
            *(_at(t) for t in (g_x if of_x else None, sums, of_kernels, of_weight)),
            add,
        )
        _call("backward", x_BHWC.dtype, ctypes.byref(self._shape(x_BHWC)), ctypes.byref(arguments))
        return g_x, sums, [g for g in (of_kernels, of_weight) if g is not None]

    def serves(self, x: Tensor) -> bool:
        """Whether a pass can take this with such maps: weights of the same numbers in the form that it reads."""
        return all(w is None or (w.dtype == x.dtype and w.is_contiguous()) for w in (self.kernels, self.weight))

    def _shape(self, x_BHWC: Tensor) -> _Shape:
        channels = self.weight.shape[1]
        if x_BHWC.shape[-1] != channels:
            raise ValueError(f"Expected {channels} channels, got input size {tuple(x_BHWC.shape)}")
        if not self.serves(x_BHWC):
            raise ValueError("Expected weights of the maps' type, dense")
        return _Shape(*x_BHWC.shape, self.weight.shape[0], *self.geometry, self.relu)


class Norm(NamedTuple):
    """What the backward pass of p * u needs: the gradient g_BHWC, y and its moments, and the sums over all pixels of g
    and of g * u."""

    g: Tensor
    y: Tensor
    moments: Tensor
    g_sum: Tensor
    gu_sum: Tensor
    p: float


def mixed(ys: Sequence[Tensor], moments_K3C: Tensor, maps: Sequence[Tensor], p: Tensor) -> Tensor:
    """sum_k p_k u_k, plus the sum of p_j times the maps: p holds the weights of both, one after the other."""
    every = [*ys, *maps]
    out, channels = torch.empty_like(every[0]), every[0].shape[-1]
    sizes = (len(ys), len(every), _at(moments_K3C), _at(p), out.numel() // channels, channels)
    _call("mixed", out.dtype, _addresses(every), *sizes, _at(out))
    return out


def mixed_sums(g_BHWC: Tensor, ys: Sequence[Tensor], moments_K3C: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Over all pixels, the sums [1 + K + J, C] of g, of g * u_k, and of g times the maps."""
    every, (images, height, width, channels) = [*ys, *maps], g_BHWC.shape
    sums = g_BHWC.new_empty(1 + len(every), channels)
    assert every[0].shape == g_BHWC.shape
    sizes = (len(ys), len(every), _at(moments_K3C), images, height * width, channels)
    _call("mixed_sums", g_BHWC.dtype, _at(g_BHWC), _addresses(every), *sizes, _at(sums))
    return sums


def scaled_sums(gs: Sequence[Tensor], p_JR: Tensor) -> list[Tensor]:
    """sum_r p_jr g_r for every j: the gradients of the maps that R edges share."""
    out = [torch.empty_like(gs[0]) for _ in range(len(p_JR))]
    _call("scaled_sums", p_JR.dtype, _addresses(gs), len(gs), _at(p_JR), len(out), gs[0].numel(), _addresses(out))
    return out


def nchw(x_BHWC: Tensor) -> Tensor:
    """As networks have it, in channels-last format."""
    return x_BHWC.permute(0, 3, 1, 2)


def nhwc(x_BCHW: Tensor) -> Tensor:
    """As passes have it: no copy where it is in channels-last format."""
    return x_BCHW.permute(0, 2, 3, 1).contiguous()


def _at(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(_dense(tensor).data_ptr())


def _addresses(tensors: Sequence[Tensor]) -> Any:
    """Of maps of one size."""
    first = tensors[0]
    for tensor in tensors:
        if tensor.shape != first.shape or tensor.dtype != first.dtype:
            raise ValueError(f"Expected maps of one size, got {tuple(first.shape)} and {tuple(tensor.shape)}")
    return (ctypes.c_void_p * len(tensors))(*(_dense(t).data_ptr() for t in tensors))


def _dense(tensor: Tensor) -> Tensor:
    if not tensor.is_contiguous():
        raise ValueError("Expected dense maps")
    return tensor


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    found = library()
    assert found is not None
    numbers = [ctypes.c_int64(a) if isinstance(a, int) else a for a in arguments]
    if getattr(found, f"{name}_{_NUMBERS[dtype]}")(*numbers, torch.get_num_threads()):
        raise MemoryError(f"no memory for a pass ({name}) of engine=compiled")
