"""From an image file to pixels; training and prediction read files through this one function."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from supernet.errors import UserError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded, whatever a file is called. Pillow knows more, and starts a program to draw PostScript."""


class UnreadableImage(UserError):
    """One file that gives no pixels, and why."""

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path, self.reason = str(path), reason
        super().__init__(f"cannot read the image {path}: {reason}")


def read_image(path: Path | str, size: int, channels: int) -> Tensor:
    """``x_CHW`` uint8, ``size`` pixels square: the shorter side is resized to fit, the middle is kept.

    ``channels`` is 1 (grey) or 3 (RGB). The picture stands as its EXIF orientation says, of an animation the first
    frame is taken, transparency shows black (as the padding of crops does), and 16-bit grey keeps its upper 8 bits.
    Raises :class:`UnreadableImage` for files that are corrupt, without a fixed range (32 bits), or suspiciously large.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for, a device never ends
            raise ValueError("it is no regular file")
        with Image.open(path, formats=FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS  # Pillow only warns of it, and refuses at twice as many
            if limit is not None and image.width * image.height > limit:
                raise ValueError(f"{image.width} x {image.height} pixels are more than the safe {limit:,}")
            upright = ImageOps.exif_transpose(image)
            plain = _eight_bits(upright).convert("L" if channels == 1 else "RGB")
            fitted = ImageOps.fit(plain, (size, size), Image.Resampling.BILINEAR)
    # A hostile file makes decoders raise nearly anything: struct.error, IndexError, zlib.error, ...
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"its content is none of {', '.join(FORMATS)}" if unknown else str(error)
        raise UnreadableImage(path, reason or type(error).__name__) from error
    x_HWC = torch.from_numpy(np.array(fitted, dtype=np.uint8)).view(size, size, channels)
    return x_HWC.permute(2, 0, 1).contiguous()


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel and no transparency; Pillow's own conversion clips 16 bits to white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no fixed range, save it with 8 or 16 bits")
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA"))
    return image
