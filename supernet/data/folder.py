"""Any folder of images: ``root/train/<class>/*`` and ``root/test/<class>/*``."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from torch import Tensor

from supernet.data.files import Files, Scan, scan
from supernet.data.images import ImageData, Images, balanced
from supernet.errors import UserError
from supernet.schema.tasks import ImageFolderConfig

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
LAYOUT = "images go to task.root/train/<class>/ and task.root/test/<class>/"

_log = logging.getLogger(__name__)


def read_folder(config: ImageFolderConfig, *, limit: int | None = None) -> ImageData:
    """Read a folder whose classes are its sorted folder names; every file is decoded once before training, to check it.

    Sets of at most ``resident_mb`` (10^6 bytes, decoded) are kept; larger ones stream. Mean and standard deviation are
    those of the training split.
    """
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise UserError(f"task.root={config.root} is not a folder: {LAYOUT}")
    listed = {split: _list_split(root / split) for split in ("train", "test")}
    classes = _common_classes(listed, config.root)
    channels = 1 if config.grey else 3
    chosen = {split: _files(listed[split], config.image_size, channels, limit) for split in listed}
    pixels = sum(len(files.paths) for files, _ in chosen.values()) * channels * config.image_size**2
    keep = pixels <= config.resident_mb * 10**6
    scans = {split: scan(files, keep=keep) for split, (files, _) in chosen.items()}
    _refuse_unreadable(scans, chosen, config.root)
    train, test = (
        Images(files if (kept := scans[s].pixels_NCHW) is None else kept, y) for s, (files, y) in chosen.items()
    )
    mean, std = scans["train"].moments.mean_std()
    return ImageData(config.name, classes, train, test, mean, std, config.crop_padding, config.flip)


def _list_split(folder: Path) -> dict[str, list[str]]:
    """The image files of every class, sorted; hidden files and folders do not count."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: {LAYOUT}")
    classes = sorted(entry.name for entry in _visible(folder) if _is_folder(entry))
    if not classes:
        raise UserError(f"{folder} holds no class folder: {LAYOUT}")
    odd = [ascii(name) for name in classes if not name.isprintable()]
    if odd:
        raise UserError(f"{folder} has class folders whose names cannot be written ({_some(odd)}): rename them")
    files = {name: _list_class(folder / name) for name in classes}
    empty = [name for name in classes if not files[name]]
    if empty:
        raise UserError(
            f"{folder} has {len(empty)} class folder(s) without an image ({_some(empty)}): remove them or add images, "
            f"whose names end in {' '.join(SUFFIXES)}"
        )
    return files


def _list_class(folder: Path) -> list[str]:
    """The image files of one class, by suffix as torchvision does; nested folders, of unclear class, are refused."""
    images: list[str] = []
    others: list[str] = []
    for entry in _visible(folder):
        if _is_folder(entry):
            raise UserError(f"{entry.path} is a folder inside a class folder: move its images up, or make it a class")
        (images if entry.name.lower().endswith(SUFFIXES) else others).append(entry.path)
    if others and images:
        _log.warning("%s: %d file(s) ignored that are no images by their name: %s", folder, len(others), _some(others))
    return sorted(images)


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, hidden things apart."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}; task.root must be readable") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, which reading it will tell
        return False


def _common_classes(listed: dict[str, dict[str, list[str]]], root: str) -> tuple[str, ...]:
    """The classes, which both splits must have."""
    train, test = (list(listed[split]) for split in ("train", "test"))
    sides = {"train/": [c for c in train if c not in test], "test/": [c for c in test if c not in train]}
    alone = [f"{_some(names)} only in {side}" for side, names in sides.items() if names]
    if alone:
        raise UserError(
            f"the classes under task.root={root} differ: {', '.join(alone)}; both splits need the same folders"
        )
    if len(train) < 2:
        raise UserError(f"task.root={root} has the one class {train[0]}: a classifier needs at least 2 class folders")
    return tuple(train)


def _files(by_class: dict[str, list[str]], size: int, channels: int, limit: int | None) -> tuple[Files, Tensor]:
    """The files of a split and ``labels_N``, of at most ``limit`` images."""
    files = Files(tuple(path for paths in by_class.values() for path in paths), size, channels)
    counts_K = torch.tensor([len(paths) for paths in by_class.values()])
    labels_N = torch.arange(len(counts_K)).repeat_interleave(counts_K)
    if limit is None:
        return files, labels_N
    indices_N = balanced(labels_N, limit)
    return files.select(indices_N.tolist()), labels_N[indices_N]


def _refuse_unreadable(scans: dict[str, Scan], chosen: dict[str, tuple[Files, Tensor]], root: str) -> None:
    bad = [error for found in scans.values() for error in found.unreadable]
    if bad:
        total = sum(len(files.paths) for files, _ in chosen.values())
        named = _some([f"{error.path}: {error.reason}" for error in bad], "; ")
        raise UserError(
            f"{len(bad)} of {total} images under task.root={root} cannot be read ({named}): repair or remove them"
        )


def _some(names: list[str], separator: str = ", ") -> str:
    """The first three names, and how many more."""
    more = [f"and {len(names) - 3} more"] if len(names) > 3 else []
    return separator.join(names[:3] + more)
