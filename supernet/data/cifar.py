"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) through torchvision."""

from __future__ import annotations

import socket
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from supernet.data.images import ImageData, Images
from supernet.data.statistics import Moments
from supernet.errors import UserError
from supernet.schema.tasks import CifarConfig

SETS: dict[str, type[CIFAR10]] = {"cifar10": CIFAR10, "cifar100": CIFAR100}

# The constants of the DARTS recipe; for CIFAR-100 they are computed.
CIFAR10_MEAN: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
CIFAR10_STD: tuple[float, ...] = (0.2470, 0.2435, 0.2616)

_PATIENCE_SECONDS = 30.0


def read_cifar(config: CifarConfig, *, limit: int | None = None) -> ImageData:
    """60,000 images of 3 x 32 x 32 in the authors' splits, or fewer and smaller ones; torchvision checks the MD5 of the
    files first."""
    provide(config)
    kind = SETS[config.name]
    sets = [kind(config.root, train=train) for train in (True, False)]
    limit = min((n for n in (limit, config.images) if n is not None), default=None)
    train, test = (
        shrink(
            Images(torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(s.targets)).first(limit),
            config.image_size,
        )
        for s in sets
    )
    mean_std = (CIFAR10_MEAN, CIFAR10_STD)
    if config.name != "cifar10" or config.image_size != 32:
        assert isinstance(train.pixels, torch.Tensor)
        mean_std = Moments.of(train.pixels).mean_std()
    return ImageData(
        config.name,
        tuple(sets[0].classes),
        train,
        test,
        *mean_std,
        config.crop_padding,
        config.flip,
    )


def shrink(images: Images, size: int) -> Images:
    """Decoded images of size x size: each pixel is the mean of the area that it covers."""
    assert isinstance(images.pixels, torch.Tensor)
    if size == images.pixels.shape[-1]:
        return images
    smaller = F.interpolate(images.pixels.float(), size=(size, size), mode="area")
    return Images(smaller.round().to(torch.uint8), images.labels_N)


def provide(config: CifarConfig) -> None:
    """See to it that the data are under ``root``: there already, unpacked from their archive, or downloaded."""
    kind, root = SETS[config.name], Path(config.root).expanduser()
    archive = root / kind.filename
    have_archive = check_integrity(str(archive), kind.tgz_md5)
    if have_archive or config.download:
        reason = _download(kind, root)
    else:
        reason = None if _present(kind, root) else "task.download=false"
    if reason is None:
        return
    broken = f"; {archive} is incomplete or corrupt" if archive.exists() and not have_archive else ""
    raise UserError(
        f"{config.name} is not under task.root={config.root} and cannot be fetched from {kind.url} ({reason}{broken}): "
        f"put {kind.filename} into that folder, or use your own images with task=image_folder task.root=DIR"
    )


def _download(kind: type[CIFAR10], root: Path) -> str | None:
    """Let torchvision unpack or download; the reason where it fails. Files that are whole are not fetched again."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE_SECONDS)  # torchvision sets none, and a firewall may never answer
    try:
        kind(root, train=False, download=True)
    except (OSError, RuntimeError, EOFError) as error:  # no network, no space; a wrong checksum; a cut archive
        return str(error) or type(error).__name__
    finally:
        socket.setdefaulttimeout(patience)
    return None


def _present(kind: type[CIFAR10], root: Path) -> bool:
    try:
        kind(root, train=False)
    except RuntimeError:  # torchvision's word for missing or of a wrong checksum
        return False
    return True
