"""Augmentation of a batch on its device: every sample has its own crop, flip and cutout, without a loop or a sync."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.errors import UserError


@dataclass(frozen=True)
class Augment:
    """Random crop after padding, horizontal flip, Cutout (arXiv:1708.04552), section 3, as in DARTS's code.

    ``crop_padding`` is in pixels, ``flip`` happens to half of the images, ``cutout`` is the side of the square in
    pixels; 0 leaves a part out. The published code pads with black before normalising and cuts out after it, so that a
    cut-out square has the mean colour: :meth:`move` goes before normalisation, :meth:`cut` after it.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0

    def __call__(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Everything at once, with zeros for padding and for what is cut out."""
        return self.cut(self.move(x_BCHW, generator), generator)

    def move(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Crop and flip; any type of number. The generator lives on the device of the images."""
        batch, _, height, width = x_BCHW.shape
        if self.crop_padding:
            offsets_2B = self._draw(2 * self.crop_padding + 1, (2, batch), x_BCHW, generator)
            # A view of every possible window, of which one gather takes each sample's own.
            padded_BCHW = F.pad(x_BCHW, [self.crop_padding] * 4)
            windows = padded_BCHW.unfold(2, height, 1).unfold(3, width, 1)
            rows_B = torch.arange(batch, device=x_BCHW.device)
            x_BCHW = windows[rows_B, :, offsets_2B[0], offsets_2B[1]]
        if self.flip:
            flipped_B = self._draw(2, (batch,), x_BCHW, generator).bool()
            x_BCHW = torch.where(flipped_B[:, None, None, None], x_BCHW.flip(3), x_BCHW)
        return x_BCHW

    def cut(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Zero a square whose centre is uniform over the pixels, clipped at the borders; a new tensor."""
        if not self.cutout:
            return x_BCHW
        batch, _, height, width = x_BCHW.shape
        outside_BH = self._outside(height, batch, x_BCHW, generator)
        outside_BW = self._outside(width, batch, x_BCHW, generator)
        return x_BCHW * (outside_BH[:, None, :, None] | outside_BW[:, None, None, :])

    def check(self, size: tuple[int, int]) -> None:
        """Refuse settings that would blank whole images of this size."""
        values = {"task.crop_padding": self.crop_padding, "retrain.cutout": self.cutout}
        for key, value in values.items():
            if value >= min(size):
                raise UserError(
                    f"{key}={value} would blank whole images of {size[0]} x {size[1]}: set it below {min(size)}"
                )

    def _outside(self, side: int, batch: int, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Which rows (or columns) of each sample the square does not touch."""
        centre_B1 = self._draw(side, (batch, 1), x_BCHW, generator)
        offset_BS = torch.arange(side, device=x_BCHW.device) - centre_B1 + self.cutout // 2
        return (offset_BS < 0) | (offset_BS >= self.cutout)

    @staticmethod
    def _draw(high: int, shape: tuple[int, ...], x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randint(high, shape, generator=generator, device=x.device)
