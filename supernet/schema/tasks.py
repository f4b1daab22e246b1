"""Tasks: where the data comes from."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from supernet.registry import register
from supernet.schema.fields import ranged


@dataclass
class DigitsConfig:
    """scikit-learn's digits: 1,797 grey images of 8 x 8, embedded; a fixed stratified fifth is the test split."""

    name: str = "digits"
    crop_padding: int = ranged(1, ge=0)
    flip: bool = False


@dataclass
class CifarConfig:
    """CIFAR through torchvision, downloaded into ``root`` where it is missing and ``download`` allows it."""

    name: str = "cifar10"
    root: str = "data"
    download: bool = True
    image_size: int = ranged(32, ge=1, le=32)  # smaller ones are averages of areas
    images: int | None = ranged(None, ge=1)  # of a split, the first of every class; null for all
    crop_padding: int = ranged(4, ge=0)
    flip: bool = True


@dataclass
class ImageFolderConfig:
    """Any folder of images: ``root/train/<class>/*`` and ``root/test/<class>/*``."""

    name: str = "image_folder"
    root: str = MISSING
    image_size: int = ranged(32, ge=1)  # images are resized so that the shorter side fits, and cropped in the middle
    crop_padding: int = ranged(4, ge=0)
    flip: bool = True
    grey: bool = False
    resident_mb: int = ranged(2048, ge=0)  # decoded sets up to this size are kept on the device; larger ones stream
    workers: int = ranged(2, ge=0)  # processes that decode a streamed set


register("task", "digits", DigitsConfig, "supernet.tasks.images:digits")
register("task", "cifar10", CifarConfig, "supernet.tasks.images:cifar")
register("task", "cifar100", CifarConfig, "supernet.tasks.images:cifar")
register("task", "image_folder", ImageFolderConfig, "supernet.tasks.images:image_folder")
