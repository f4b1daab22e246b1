"""What the operations on one state have in common: its ReLU, its copies, its pools; each is computed once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from supernet.spaces.banks.kinds import Known, Shared
from supernet.spaces.banks.norms import Norms
from supernet.spaces.ops import shift


class Features:
    """The features of one state, x, in channels-last format."""

    def __init__(self, x_BCHW: Tensor) -> None:
        self.x = x_BCHW
        self._made: dict[Hashable, Tensor] = {}
        self._normalised: dict[Hashable, tuple[Tensor, Tensor | None, Tensor | None]] = {}

    def _once(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @property
    def relu(self) -> Tensor:
        return self._once("relu", lambda: torch.relu(self.x))

    @property
    def halves(self) -> Tensor:
        """What the two convolutions of a factorized reduction read, side by side: 2 C channels."""

        def make() -> Tensor:
            both = torch.cat([self.relu[:, :, ::2, ::2], shift(self.relu)[:, :, ::2, ::2]], dim=1)
            return both.contiguous(memory_format=torch.channels_last)

        return self._once("halves", make)

    def tiled(self, times: int) -> Tensor:
        """relu(x), its channels repeated."""
        return self.relu if times == 1 else self._once(times, lambda: tile(self.relu, times))

    def pooled(self, known: Shared) -> Tensor:
        """The output of a pool, or x itself; channels-last."""
        pool = known.pool
        if pool is None:
            return self.x
        return self._once(known.key, lambda: pool(self.x).contiguous(memory_format=torch.channels_last))

    def shared(self, known_R: Sequence[Known]) -> Tensor:
        """The output that a kind of operation has on all edges: of a pool, of a pool and its norm by the statistics of
        the batch (by running ones every norm has its own: without the norm), or x itself."""
        first = known_R[0]
        assert isinstance(first, Shared)
        norms = Norms.of(known_R)
        if norms is None or not norms.uses_batch:
            return self.pooled(first)
        key = (first.key, norms.eps)
        z_BCHW = self.pooled(first)
        if key not in self._normalised:
            mean_C, var_C = norms.before(z_BCHW)
            y_BCHW = torch.native_batch_norm(z_BCHW, None, None, mean_C, var_C, True, 1.0, norms.eps)[0]
            self._normalised[key] = y_BCHW, mean_C, var_C
        y_BCHW, mean_C, var_C = self._normalised[key]
        norms.track(mean_C, var_C)
        return y_BCHW


def tile(x_BCHW: Tensor, times: int) -> Tensor:
    """x with its channels repeated ``times`` times, in channels-last format.

    On a CPU as a product with [1 1 ... 1], exact, since its backward pass is one as well, three times as fast there as
    a sum.
    """
    channels = x_BCHW.shape[1]
    if x_BCHW.device.type == "cpu":
        return as_images(by_pixel(x_BCHW) @ identity(channels, x_BCHW).repeat(1, times), size_of(x_BCHW))
    x_BHWRC = x_BCHW.permute(0, 2, 3, 1)[:, :, :, None].expand(-1, -1, -1, times, -1)
    return x_BHWRC.flatten(3).permute(0, 3, 1, 2)


def by_pixel(x_BCHW: Tensor) -> Tensor:
    """[pixels, channels], a view of channels-last maps."""
    return x_BCHW.permute(0, 2, 3, 1).reshape(-1, x_BCHW.shape[1])


def as_images(y_nE: Tensor, size_BHW: Sequence[int]) -> Tensor:
    """The images that pixels are of, y_BEHW."""
    return y_nE.view(*size_BHW, -1).permute(0, 3, 1, 2)


def size_of(x_BCHW: Tensor, stride: int = 1) -> tuple[int, int, int]:
    """Images, rows and columns of a map, or of what a stride leaves of it."""
    batch, _, height, width = x_BCHW.shape
    return batch, -(-height // stride), -(-width // stride)


def identity(channels: int, like: Tensor) -> Tensor:
    """The unit matrix, made once."""
    return _identity(channels, like.dtype, like.device)


@functools.lru_cache(maxsize=64)
def _identity(channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.eye(channels, dtype=dtype, device=device)


@functools.lru_cache(maxsize=1024)
def indices(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Indices on the device, copied there once: a copy in every step would make the host wait."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)
