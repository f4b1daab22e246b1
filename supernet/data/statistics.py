"""Mean and standard deviation of pixels, from integer sums: the same for any order, chunking or number of threads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_CHUNK = 64  # images summed at once, which bounds the memory of their squares


@dataclass(frozen=True)
class Moments:
    """Sums over pixels of uint8 images: how many per channel, their values and squares (``sums_2C``)."""

    pixels: int
    sums_2C: npt.NDArray[np.int64]

    @classmethod
    def zero(cls, channels: int) -> Moments:
        return cls(0, np.zeros((2, channels), dtype=np.int64))

    @classmethod
    def of(cls, x_NCHW: Tensor) -> Moments:
        """Moments of uint8 images."""
        total = cls.zero(x_NCHW.shape[1])
        for chunk_NCHW in torch.split(x_NCHW, _CHUNK):
            # NumPy, because torch would start its own threads in each of the threads that scan a folder.
            wide_NCHW = chunk_NCHW.numpy().astype(np.int64)
            sums = [wide_NCHW.sum((0, 2, 3)), np.square(wide_NCHW).sum((0, 2, 3))]
            total = total + cls(chunk_NCHW[:, 0].numel(), np.stack(sums))
        return total

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.pixels + other.pixels, self.sums_2C + other.sums_2C)

    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per channel, of values in [0, 1], over all pixels of all images, as CIFAR's published constants are.

        The deviation is at least one grey level: a constant channel must not divide by zero.
        """
        mean_C, square_C = self.sums_2C / self.pixels
        std_C = np.sqrt(np.maximum(square_C - mean_C**2, 1))
        return tuple((mean_C / 255).tolist()), tuple((std_C / 255).tolist())
