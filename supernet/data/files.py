"""Image files that stay on disk, and the pass over all of them before anything is trained."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from supernet.data.decode import UnreadableImage, read_image
from supernet.data.statistics import Moments

_CHUNK = 64  # files a thread takes at once, so that handing out work costs nothing


@dataclass(frozen=True)
class Files:
    """Images that are decoded when they are needed; to a loader they look like a tensor that is read by rows."""

    paths: tuple[str, ...]
    image_size: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W), once decoded."""
        return len(self.paths), self.channels, self.image_size, self.image_size

    def read(self, indices: Sequence[int]) -> Tensor:
        """``x_BCHW`` uint8 of these rows; raises :class:`~supernet.data.decode.UnreadableImage`."""
        return torch.stack([read_image(self.paths[i], self.image_size, self.channels) for i in indices])

    def select(self, indices: Sequence[int]) -> Files:
        """These rows only."""
        return Files(tuple(self.paths[i] for i in indices), self.image_size, self.channels)


@dataclass(frozen=True)
class Scan:
    """What a pass over all files found; ``pixels_NCHW`` is None where they were not kept."""

    pixels_NCHW: Tensor | None
    moments: Moments
    unreadable: list[UnreadableImage]


def scan(files: Files, *, keep: bool) -> Scan:
    """Decode every file once, in threads (Pillow releases the GIL): better an error now than in the last epoch.

    A set that will stream is decoded here too, only to be checked and for its mean and standard deviation.
    """
    out_NCHW = torch.empty(files.shape, dtype=torch.uint8) if keep else None

    def read(start: int) -> tuple[Moments, list[UnreadableImage]]:
        good: list[Tensor] = []
        unreadable: list[UnreadableImage] = []
        for path in files.paths[start : start + _CHUNK]:
            try:
                good.append(read_image(path, files.image_size, files.channels))
            except UnreadableImage as error:
                unreadable.append(error)
        if unreadable:  # the set will be refused: what matters is to find the rest of them
            return Moments.zero(files.channels), unreadable
        x_NCHW = torch.stack(good)
        if out_NCHW is not None:
            out_NCHW[start : start + len(good)] = x_NCHW
        return Moments.of(x_NCHW), unreadable

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata in files that it decodes well; read_image refuses what is serious.
            warnings.simplefilter("ignore")
            parts = list(pool.map(read, range(0, len(files.paths), _CHUNK)))
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C, do not finish the queue first
    moments = sum((m for m, _ in parts), Moments.zero(files.channels))
    return Scan(out_NCHW, moments, [error for _, errors in parts for error in errors])
