"""What a reader gives, and how a split of it is divided."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from supernet.data.files import Files
from supernet.errors import UserError
from supernet.runtime.random import generator


@dataclass(frozen=True, eq=False)
class Images:
    """One split: ``labels_N`` int64 and ``pixels``, which are decoded (``x_NCHW`` uint8) or files that stream."""

    pixels: Tensor | Files
    labels_N: Tensor
    _placed: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.pixels.shape[0] == len(self.labels_N)

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.pixels.shape[2], self.pixels.shape[3]

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """``x_NCHW`` uint8 and ``y_N`` of a decoded split, on the device; all loaders share the one copy."""
        assert isinstance(self.pixels, Tensor)
        if device not in self._placed:
            self._placed[device] = self.pixels.to(device), self.labels_N.to(device)
        return self._placed[device]

    def select(self, indices_N: Tensor) -> Images:
        """These images only."""
        pixels = self.pixels[indices_N] if isinstance(self.pixels, Tensor) else self.pixels.select(indices_N.tolist())
        return Images(pixels, self.labels_N[indices_N])

    def first(self, limit: int | None) -> Images:
        """At most ``limit`` images, the first of every class, so that classes differ by at most one where they can."""
        return self if limit is None else self.select(balanced(self.labels_N, limit))


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: its splits and what its recipe says. ``mean`` and ``std`` are per channel, of values in [0, 1]."""

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool


def balanced(labels_N: Tensor, limit: int) -> Tensor:
    """Sorted indices of at most ``limit`` images: first of all classes, then second of all classes, and so on."""
    by_class_N = torch.sort(labels_N, stable=True).indices
    counts_K = torch.bincount(labels_N)
    starts_K = counts_K.cumsum(0) - counts_K
    rank_N = torch.arange(len(labels_N)) - starts_K[labels_N[by_class_N]]
    return by_class_N[torch.sort(rank_N, stable=True).indices[:limit]].sort().values


def split_indices(labels_N: Tensor, portion: float, *, seed: int, stream: str) -> tuple[Tensor, Tensor]:
    """Divide a split in two: sorted indices of a ``portion`` of it, and of the rest.

    Keyed by (seed, stream) and stratified: the first part has round(portion * N) images, and of every class its share
    to within one image. The published code cuts one shuffled list instead, which leaves small sets' classes uneven.
    """
    order_N = torch.randperm(len(labels_N), generator=generator(seed, stream))
    grouped_N = order_N[torch.sort(labels_N[order_N], stable=True).indices]
    # Image n is taken where the running share passes an integer: exact in total, within one in every class.
    share_N = (torch.arange(len(labels_N) + 1, dtype=torch.float64) * portion + 0.5).floor()
    taken_N = share_N.diff() > 0
    return grouped_N[taken_N].sort().values, grouped_N[~taken_N].sort().values


def check_size(size: tuple[int, int], reductions: int, key: str = "space.reductions=") -> None:
    """Refuse images that ``reductions`` halvings (each rounding up) leave with less than 2 x 2 positions; ``key`` is
    what sets their number, or nothing.

    A 1 x 1 map would still run, but there every pooling is the identity and every convolution sees its own padding, so
    the operations that the search is to compare would be the same.
    """
    height, width = (-(-side // 2**reductions) for side in size)
    if min(height, width) < 2:
        most = (min(size) - 1).bit_length() - 1
        fewer = f", or at most {key}{most}" if most >= 0 and key else ""
        raise UserError(
            f"images of {size[0]} x {size[1]} become {height} x {width} after {key}{reductions} halvings, "
            f"and at least 2 x 2 must remain: use images of at least {2**reductions + 1} pixels a side (an image "
            f"folder's task.image_size){fewer}"
        )
