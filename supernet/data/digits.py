"""scikit-learn's handwritten digits."""

from __future__ import annotations

import torch

from supernet.data.images import ImageData, Images, split_indices
from supernet.data.statistics import Moments
from supernet.schema.tasks import DigitsConfig

_TEST_PORTION = 0.2


def read_digits(config: DigitsConfig, *, limit: int | None = None) -> ImageData:
    """1,797 images of 1 x 8 x 8. The test split is a stratified fifth, the same in every run whatever its seed."""
    from sklearn.datasets import load_digits  # takes a second to import, so only where it is used

    bunch = load_digits()
    levels_NHW = torch.from_numpy(bunch.images)  # ink from 0 to 16
    x_NCHW = (levels_NHW * (255 / 16)).round().to(torch.uint8)[:, None]
    images = Images(x_NCHW, torch.from_numpy(bunch.target).long())
    test_N, train_N = split_indices(images.labels_N, _TEST_PORTION, seed=0, stream="digits/test")
    train, test = images.select(train_N).first(limit), images.select(test_N).first(limit)
    mean, std = Moments.of(x_NCHW[train_N]).mean_std()
    classes = tuple(str(c) for c in bunch.target_names)
    return ImageData(config.name, classes, train, test, mean, std, config.crop_padding, config.flip)
