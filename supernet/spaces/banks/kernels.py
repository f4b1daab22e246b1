"""Passes over feature maps, each of which does all that can be done in one reading: compiled on first use.

Maps are y_BHWC: images in channels-last order. A batch norm without affine parameters gives
u = (y - mean) / sigma; its backward pass for a gradient g of u is

    (g - mean(g) - u * mean(g * u)) / sigma.

The library reads and writes the map once for each of: statistics, norm, ReLU, weight, sum, and for their gradients; on
a CPU that is what the time goes into, as soon as maps do not fit into its cache.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

_F = TypeVar("_F", bound=Callable[..., Any])
_log = logging.getLogger(__name__)

SHAPES = 64
"""For so many shapes each pass is compiled; for more it runs as it stands."""


def compiled(function: _F) -> _F:
    """The function, compiled for each shape when it is first called with it."""
    return cast(_F, torch.compile(function, dynamic=False))


@functools.cache
def available() -> bool:
    """Whether there is a compiler; else one warning."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, SHAPES)
    try:
        rectified(torch.zeros(1, 1, 1, 1), torch.zeros(1), torch.ones(1), 0)
    except (RuntimeError, ImportError) as error:
        _log.warning("engine=compiled: going on with engine=banked, since the compiler failed: %s", _first_line(error))
        return False
    return True


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]


@compiled
def moments(y_BHWC: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance (biased), and 1 / sigma of every channel: first image by image, in the cache, then of all images.

    With n pixels in each of B images, the squares about an image's own mean m_b add up to the whole by
    sum (y - mean)^2 = sum_b [ sum (y - m_b)^2 + n (m_b - mean)^2 ].
    """
    y_BnC = y_BHWC.flatten(1, 2)
    mean_BC = y_BnC.mean(1)
    square_BC = (y_BnC - mean_BC[:, None]).square().mean(1)
    mean_C = mean_BC.mean(0)
    var_C = (square_BC + (mean_BC - mean_C).square()).mean(0)
    return mean_C, var_C, (var_C + eps).rsqrt()


@compiled
def rectified(y_BHWC: Tensor, mean_C: Tensor, inverse_C: Tensor, margin: int) -> Tensor:
    """relu(u), with a margin of zeros around each image."""
    h_BHWC = ((y_BHWC - mean_C) * inverse_C).relu()
    return F.pad(h_BHWC, (0, 0, margin, margin, margin, margin)) if margin else h_BHWC


@compiled
def rectified_sums(g_BHWC: Tensor, y_BHWC: Tensor, mean_C: Tensor, inverse_C: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of g and of g * u over the pixels where u > 0, g being the gradient of relu(u)."""
    u_BnC = ((y_BHWC - mean_C) * inverse_C).flatten(1, 2)
    g_BnC = torch.where(u_BnC > 0, g_BHWC.flatten(1, 2), 0.0)
    return g_BnC.sum(1).sum(0), (g_BnC * u_BnC).sum(1).sum(0)


@compiled
def rectified_gradient(
    g_BHWC: Tensor, y_BHWC: Tensor, mean_C: Tensor, inverse_C: Tensor, g_C: Tensor, gu_C: Tensor
) -> Tensor:
    """The gradient of y, from that of relu(u) and its :func:`rectified_sums`."""
    count = y_BHWC.numel() // y_BHWC.shape[-1]
    u_BHWC = (y_BHWC - mean_C) * inverse_C
    g_BHWC = torch.where(u_BHWC > 0, g_BHWC, 0.0)
    return (g_BHWC - g_C / count - u_BHWC * (gu_C / count)) * inverse_C


@compiled
def mixed(
    y_KBHWC: Sequence[Tensor],
    mean_KC: Sequence[Tensor],
    inverse_KC: Sequence[Tensor],
    maps: Sequence[Tensor],
    p: Tensor,
) -> Tensor:
    """sum_k p_k u_k, plus the sum of p_j times the maps: p holds the weights of both, one after the other."""
    own = len(y_KBHWC)
    terms = [(y - mean_KC[k]) * (inverse_KC[k] * p[k]) for k, y in enumerate(y_KBHWC)]
    terms += [map_BHWC * p[own + j] for j, map_BHWC in enumerate(maps)]
    return sum(terms[1:], terms[0])


@compiled
def mixed_sums(
    g_BHWC: Tensor,
    y_KBHWC: Sequence[Tensor],
    mean_KC: Sequence[Tensor],
    inverse_KC: Sequence[Tensor],
    maps: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor], Tensor]:
    """The sums of g and of g * u_k over all pixels, and the gradient of p."""
    g_BnC = g_BHWC.flatten(1, 2)
    us = [(y.flatten(1, 2) - mean_KC[k]) * inverse_KC[k] for k, y in enumerate(y_KBHWC)]
    gu_KC = [(g_BnC * u).sum(1).sum(0) for u in us]
    of_maps = [(g_BnC * map_BHWC.flatten(1, 2)).sum(1).sum() for map_BHWC in maps]
    return g_BnC.sum(1).sum(0), gu_KC, torch.stack([*(gu_C.sum() for gu_C in gu_KC), *of_maps])


@compiled
def mixed_gradients(
    g_BHWC: Tensor,
    y_KBHWC: Sequence[Tensor],
    mean_KC: Sequence[Tensor],
    inverse_KC: Sequence[Tensor],
    g_C: Tensor,
    gu_KC: Sequence[Tensor],
    p: Tensor,
) -> list[Tensor]:
    """The gradients of all y_k, from that of their mixture and its :func:`mixed_sums`."""
    count = g_BHWC.numel() // g_BHWC.shape[-1]
    found = []
    for k, y in enumerate(y_KBHWC):
        u = (y - mean_KC[k]) * inverse_KC[k]
        found.append((g_BHWC - g_C / count - u * (gu_KC[k] / count)) * (inverse_KC[k] * p[k]))
    return found


@compiled
def scaled_sums(g_RBHWC: Sequence[Tensor], p_JR: Tensor) -> list[Tensor]:
    """sum_r p_jr g_r for every j: the gradients of the maps that R edges share."""
    return [
        sum((g * p_JR[j, r] for r, g in enumerate(g_RBHWC[1:], 1)), g_RBHWC[0] * p_JR[j, 0])
        for j in range(p_JR.shape[0])
    ]


@compiled
def kernel_gradient(g_BHWC: Tensor, x_BHWC: Tensor, kernel: int, stride: int, dilation: int, start: int) -> Tensor:
    """The gradient of depthwise kernels, of shape [C, 1, kernel, kernel]: all taps in one reading.

    x has zeros around it; the first tap of the first pixel sees row and column ``start``.
    """
    _, height, width, channels = g_BHWC.shape
    rows = math.gcd(height, 8)  # as many as the fastest cache holds
    g_BSrWC = g_BHWC.unflatten(1, (-1, rows))
    taps = []
    for i in range(kernel):
        for j in range(kernel):
            top, left = start + i * dilation, start + j * dilation
            seen = x_BHWC[:, top : top + stride * height : stride, left : left + stride * width : stride]
            taps.append((g_BSrWC * seen.unflatten(1, (-1, rows))).sum((2, 3)))
    return torch.stack([tap.sum((0, 1)) for tap in taps], 1).view(channels, 1, kernel, kernel)
