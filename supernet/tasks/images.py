"""Image classification."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.data.augment import Augment
from supernet.data.images import ImageData, Images, split_indices
from supernet.data.loader import Loader
from supernet.interfaces import Net, StepResult, Task
from supernet.schema import Config
from supernet.schema.tasks import CifarConfig, DigitsConfig, ImageFolderConfig
from supernet.types import Batch, Mixing


class ImageClassification(Task):
    """Cross-entropy on images; a second output of the network is an auxiliary head's, with its own weight."""

    def __init__(self, data: ImageData) -> None:
        self.data = data
        self.in_channels = data.train.channels
        self.classes = data.classes

    def step(
        self, net: Net, batch: Batch, p: Mixing | None, carry: Any = None, *, auxiliary_weight: float = 0.0
    ) -> StepResult:
        """Mean loss of a batch; metrics are ``correct`` and ``count``."""
        output = net(batch.x, p)
        logits_BK, *auxiliary = output if isinstance(output, tuple) else (output,)
        loss = F.cross_entropy(logits_BK, batch.y)
        for auxiliary_BK in auxiliary:
            loss = loss + auxiliary_weight * F.cross_entropy(auxiliary_BK, batch.y)
        correct = (logits_BK.detach().argmax(dim=1) == batch.y).sum()
        return StepResult(loss, {"correct": correct, "count": torch.full_like(correct, len(batch.y))}, None)

    def search_loaders(self, config: Config, device: torch.device, *, split: bool) -> dict[str, Loader]:
        """Loaders of the training split for weights, alpha and evaluation; the test split is not among them.

        Without ``split`` weights train on all of it (single-level search), and the evaluation is on data seen in
        training.
        """
        labels_N = self.data.train.labels_N
        weights_N, alpha_N = split_indices(
            labels_N, config.search.train_portion, seed=config.seed, stream="search/split"
        )
        train_N = weights_N if split else torch.arange(len(labels_N))
        batch, key = config.search.batch, "search.batch"
        return {
            "weights": self._train(train_N, "search/weights", batch, key, config, device),
            "alpha": self._train(alpha_N, "search/alpha", batch, key, config, device),
            "evaluate": self._plain(self.data.train, alpha_N, batch, config, device),
        }

    def retrain_loaders(self, config: Config, device: torch.device) -> dict[str, Loader]:
        """Loaders of the training split for the child, and of what ``retrain.valid_portion`` holds out, if anything."""
        labels_N = self.data.train.labels_N
        portion, batch = config.retrain.valid_portion, config.retrain.batch
        train_N, valid_N = torch.arange(len(labels_N)), None
        if portion > 0:
            train_N, valid_N = split_indices(labels_N, 1 - portion, seed=config.seed, stream="retrain/split")
        cutout = config.retrain.cutout
        loaders = {"train": self._train(train_N, "retrain/train", batch, "retrain.batch", config, device, cutout)}
        if valid_N is not None:
            loaders["valid"] = self._plain(self.data.train, valid_N, batch, config, device)
        return loaders

    def test_loader(self, config: Config, device: torch.device) -> Loader:
        """The test split, for the one evaluation at the end of a run."""
        return self._plain(self.data.test, None, config.retrain.batch, config, device)

    def _train(
        self,
        indices_N: Tensor,
        stream: str,
        batch: int,
        key: str,
        config: Config,
        device: torch.device,
        cutout: int = 0,
    ) -> Loader:
        # The last incomplete batch of an epoch is dropped, so that shapes are static; the next epoch draws another
        # order.
        return Loader(
            self.data.train,
            indices_N,
            batch=batch,
            batch_key=key,
            device=device,
            seed=config.seed,
            stream=stream,
            mean=self.data.mean,
            std=self.data.std,
            augment=Augment(self.data.crop_padding, self.data.flip, cutout),
            shuffle=True,
            drop_last=True,
            max_steps=config.limit.steps,
            workers=getattr(config.task, "workers", 0),
        )

    def _plain(
        self, images: Images, indices_N: Tensor | None, batch: int, config: Config, device: torch.device
    ) -> Loader:
        return Loader(
            images,
            indices_N,
            batch=batch,
            device=device,
            seed=config.seed,
            stream="evaluate",
            mean=self.data.mean,
            std=self.data.std,
            shuffle=False,
            drop_last=False,
            workers=getattr(config.task, "workers", 0),
        )


def digits(config: DigitsConfig, *, limit: int | None) -> ImageClassification:
    """scikit-learn's digits."""
    from supernet.data.digits import read_digits

    return ImageClassification(read_digits(config, limit=limit))


def cifar(config: CifarConfig, *, limit: int | None) -> ImageClassification:
    """CIFAR-10 or -100."""
    from supernet.data.cifar import read_cifar

    return ImageClassification(read_cifar(config, limit=limit))


def image_folder(config: ImageFolderConfig, *, limit: int | None) -> ImageClassification:
    """A folder of images."""
    from supernet.data.folder import read_folder

    return ImageClassification(read_folder(config, limit=limit))
