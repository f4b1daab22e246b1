"""Batches of a split: keyed order, keyed augmentation, from any batch on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from supernet.data.augment import Augment
from supernet.data.files import Files
from supernet.data.images import Images
from supernet.data.stream import stream_batches
from supernet.errors import UserError
from supernet.runtime.random import generator
from supernet.types import Batch


class Loader:
    """Batches of ``images[indices_N]``, normalised, on the device; without state: an epoch follows from its number.

    ``shuffle`` draws an order from (seed, stream, epoch). Without it the order is mixed all the same, but always the
    same: in files sorted by class every batch would hold one class, and batch statistics of it would mean nothing.
    ``drop_last`` gives batches of exactly ``batch`` images; without it an epoch holds every image once, in batches
    whose sizes differ by at most one, so that none is tiny. ``max_steps`` ends an epoch early. ``workers`` is for
    images that stream, and changes nothing but speed.
    """

    def __init__(
        self,
        images: Images,
        indices_N: Tensor | None,
        *,
        batch: int,
        device: torch.device | str,
        seed: int,
        stream: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augment: Augment | None = None,
        shuffle: bool,
        drop_last: bool,
        max_steps: int | None = None,
        workers: int = 0,
        batch_key: str = "search.batch",
    ) -> None:
        self._images, self._batch, self._device = images, batch, torch.device(device)
        self._seed, self._stream, self._workers = seed, stream, workers
        self._augment, self._shuffle, self._drop_last = augment, shuffle, drop_last
        self._indices_N = torch.arange(len(images)) if indices_N is None else indices_N.cpu()
        self._check(batch_key)
        chunks = len(self._chunks(self._indices_N))
        self._steps = chunks if max_steps is None else min(chunks, max_steps)
        std_C = torch.tensor(std, dtype=torch.float64)
        self._scale_C11 = self._per_channel(1 / (255 * std_C))
        self._shift_C11 = self._per_channel(-torch.tensor(mean, dtype=torch.float64) / std_C)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on, exactly as an uninterrupted epoch gives them.

        ``x_BCHW`` float32 and ``y_B`` int64. Nothing here waits for the device or touches global random state.
        """
        for number, (raw_BCHW, y_B) in enumerate(self._fetch(epoch, start), start):
            yield Batch(self._finish(raw_BCHW, epoch, number), y_B)

    def images(self, epoch: int, number: int) -> list[int] | list[str]:
        """The images of a batch: rows of the split, or files where it streams."""
        rows = self._chunks(self._order(epoch))[number].tolist()
        pixels = self._images.pixels
        return [str(pixels.paths[row]) for row in rows] if isinstance(pixels, Files) else rows

    def _fetch(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 images and labels, on the device."""
        order_N = self._order(epoch)
        order_chunks = self._chunks(order_N.to(self._device))[start : self._steps]
        if isinstance(self._images.pixels, Files):
            y_N = self._images.labels_N.to(self._device)
            rows = [chunk_B.tolist() for chunk_B in self._chunks(order_N)[start : self._steps]]
            seed = self._generator("workers", epoch).initial_seed()
            batches = stream_batches(self._images.pixels, rows, self._workers, seed, self._device)
            for chunk_B, x_BCHW in zip(order_chunks, batches, strict=True):
                yield x_BCHW, y_N.index_select(0, chunk_B)
        else:
            x_NCHW, y_N = self._images.on(self._device)
            for chunk_B in order_chunks:
                yield x_NCHW.index_select(0, chunk_B), y_N.index_select(0, chunk_B)

    def _finish(self, raw_BCHW: Tensor, epoch: int, number: int) -> Tensor:
        """Augment and normalise."""
        if self._augment is None:
            return raw_BCHW.float().mul_(self._scale_C11).add_(self._shift_C11)
        draws = self._generator("augment", epoch, number, device=self._device)
        x_BCHW = self._augment.move(raw_BCHW, draws).float().mul_(self._scale_C11).add_(self._shift_C11)
        return self._augment.cut(x_BCHW, draws)

    def _order(self, epoch: int) -> Tensor:
        """The images of an epoch in order; drawn on the CPU, so that all devices see the same."""
        # The fixed order has a fixed seed: an evaluation meets the same batches whatever the run's seed.
        draws = self._generator("order", epoch) if self._shuffle else generator(0, "data/fixed-order")
        return self._indices_N[torch.randperm(len(self._indices_N), generator=draws)]

    def _chunks(self, order_N: Tensor) -> tuple[Tensor, ...]:
        """One tensor of indices per batch."""
        size = len(order_N)
        if self._drop_last:
            return torch.split(order_N[: size - size % self._batch], self._batch)
        return order_N.tensor_split(-(-size // self._batch))

    def _generator(self, what: str, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
        return generator(self._seed, f"{self._stream}/{what}", *counters, device=device)

    def _per_channel(self, values_C: Tensor) -> Tensor:
        return values_C.float().view(-1, 1, 1).to(self._device)

    def _check(self, batch_key: str) -> None:
        size = len(self._indices_N)
        if size == 0:
            raise UserError(
                f"the data for {self._stream} hold no image: give more images, or move search.train_portion or "
                "retrain.valid_portion away from its end"
            )
        if self._drop_last and size < self._batch:
            raise UserError(
                f"{batch_key}={self._batch} is larger than the {size} images for {self._stream}: set {batch_key} to at "
                f"most {size}, or give more images"
            )
        if self._augment is not None:
            self._augment.check(self._images.size)
