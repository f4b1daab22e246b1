"""A task whose needed operation is known by construction."""

from __future__ import annotations

import torch

from supernet.data.images import ImageData, Images
from supernet.tasks.images import ImageClassification

OPERATIONS = ["none", "skip_connect", "max_pool_3x3", "avg_pool_3x3", "dil_conv_5x5"]
NEEDED = "dil_conv_5x5"
DISTANCE = 8


def planted_task(seed: int, count: int = 768, side: int = 20) -> ImageClassification:
    """Two dots DISTANCE pixels apart, side by side (class 0) or one above the other (class 1).

    A network of two cells whose edges are skips or 3x3 pools reaches 1 (stem) + 1 + 1 pixels from a location, so no
    location sees two dots that are 8 apart, and the sums over all locations do not tell the classes from each other. A
    dilated 5x5 convolution reaches 4 pixels, with taps exactly there.
    """
    draw = torch.Generator().manual_seed(seed)
    y_N = torch.arange(count) % 2
    first_N2 = torch.randint(2, side - 2 - DISTANCE, (count, 2), generator=draw)
    second_N2 = first_N2 + DISTANCE * torch.stack([y_N, 1 - y_N], dim=1)
    # Both dots lie within the margins whichever the class, so borders do not give it away.
    x_NCHW = (torch.rand(count, 1, side, side, generator=draw) * 40).to(torch.uint8)
    rows = torch.arange(count)
    for dot_N2 in (first_N2, second_N2):
        x_NCHW[rows, 0, dot_N2[:, 0], dot_N2[:, 1]] = 255
    images = Images(x_NCHW, y_N)
    data = ImageData("planted", ("beside", "above"), images, images, (0.1,), (0.2,), crop_padding=0, flip=False)
    return ImageClassification(data)
