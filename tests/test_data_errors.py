"""What a user does wrong with data: one sentence each, naming the key or file, the value and the remedy."""

from __future__ import annotations

import errno
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from supernet.data.augment import Augment
from supernet.data.decode import read_image
from supernet.data.folder import read_folder
from supernet.data.images import ImageData, Images, check_size
from supernet.data.loader import Loader
from supernet.errors import UserError
from supernet.schema.tasks import CifarConfig, ImageFolderConfig


def write_images(folder: Path, count: int = 4) -> None:
    folder.mkdir(parents=True)
    for n in range(count):
        Image.fromarray(np.full((4, 4, 3), n, dtype=np.uint8)).save(folder / f"{n}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            write_images(tmp_path / "images" / split / name)
    return tmp_path / "images"


def read(root: Path, resident_mb: int = 2048) -> ImageData:
    return read_folder(ImageFolderConfig(root=str(root), image_size=4, resident_mb=resident_mb))


def add_class(root: Path, name: str) -> None:
    for split in ("train", "test"):
        write_images(root / split / name)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: shutil.rmtree(r), ["task.root", "is not a folder", "task.root/train/<class>/"]),
        (lambda r: shutil.rmtree(r / "train"), ["images/train is missing", "task.root/train/<class>/"]),
        (lambda r: shutil.rmtree(r / "test"), ["images/test is missing"]),
        (lambda r: [shutil.rmtree(r / "train" / c) for c in ("ant", "bee")], ["images/train holds no class folder"]),
        (lambda r: (r / "train" / "cat").mkdir(), ["1 class folder(s) without an image (cat)", ".png"]),
        (lambda r: shutil.rmtree(r / "test" / "ant"), ["classes", "ant only in train/", "both splits"]),
        (lambda r: write_images(r / "test" / "wasp"), ["wasp only in test/"]),
        (lambda r: [shutil.rmtree(r / s / "ant") for s in ("train", "test")], ["one class bee", "at least 2"]),
        (lambda r: (r / "train" / "ant" / "more").mkdir(), ["train/ant/more", "inside a class folder"]),
    ],
    ids=["root", "train", "test", "no-class", "empty-class", "only-train", "only-test", "one-class", "nested"],
)
def test_layout(root: Path, spoil: Callable[[Path], object], words: list[str]) -> None:
    spoil(root)
    with pytest.raises(UserError) as caught:
        read(root)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("resident_mb", [2048, 0], ids=["resident", "streamed"])
def test_corrupt_images_are_all_counted_and_three_named(root: Path, resident_mb: int) -> None:
    whole = (root / "train" / "ant" / "1.png").read_bytes()
    (root / "train" / "ant" / "0.png").write_bytes(b"")
    (root / "train" / "bee" / "0.png").write_bytes(whole[:-30])  # an interrupted copy
    (root / "test" / "ant" / "2.png").write_text("<html>not found</html>")
    (root / "test" / "bee" / "3.png").write_text("junk")
    with pytest.raises(UserError) as caught:
        read(root, resident_mb)
    sentence = str(caught.value)
    assert "4 of 16 images" in sentence and "and 1 more" in sentence
    assert all(str(root / name) in sentence for name in ("train/ant/0.png", "train/bee/0.png", "test/ant/2.png"))
    assert "test/bee/3.png" not in sentence and "\n" not in sentence


@pytest.mark.parametrize("limit", [15, 5], ids=["warned-of", "refused"])
def test_decompression_bomb(root: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.new("RGB", (2, 2)).save(root / "train" / "ant" / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # Pillow warns above it, and refuses above twice as much
    with pytest.raises(UserError, match=r"15 of 16 images .*(4 x 4 pixels|16 pixels\) exceeds)"):
        read(root)


def test_pixels_without_a_range(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "depth.tif")
    with pytest.raises(UserError, match=r"depth\.tif: 32-bit pixels"):
        read_image(tmp_path / "depth.tif", 4, 1)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_goes_bad_while_streaming(root: Path, workers: int) -> None:
    data = read(root, resident_mb=0)
    (root / "train" / "bee" / "1.png").write_bytes(b"junk")
    with pytest.raises(UserError) as caught:
        list(loader(data.train, batch=4, workers=workers).epoch(0))
    assert "train/bee/1.png" in str(caught.value) and "\n" not in str(caught.value)


# Loader


def loader(images: Images, batch: int, augment: Augment | None = None, workers: int = 0, **more: str) -> Loader:
    return Loader(
        images,
        None,
        batch=batch,
        device="cpu",
        seed=0,
        stream="search/alpha",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        augment=augment,
        shuffle=True,
        drop_last=True,
        workers=workers,
        **more,  # type: ignore[arg-type]
    )


def images(n: int) -> Images:
    return Images(torch.zeros(n, 3, 8, 8, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64))


def test_batch_larger_than_the_split() -> None:
    assert len(loader(images(16), batch=16)) == 1
    with pytest.raises(
        UserError, match=r"retrain\.batch=16 is larger than the 15 images for search/alpha.* at most 15"
    ):
        loader(images(15), batch=16, batch_key="retrain.batch")


def test_split_without_an_image() -> None:
    with pytest.raises(UserError, match=r"no image.*search\.train_portion"):
        loader(images(0), batch=2)


@pytest.mark.parametrize(
    ("augment", "sentence"),
    [
        (Augment(crop_padding=8), r"task\.crop_padding=8 .*8 x 8.* below 8"),
        (Augment(cutout=16), r"retrain\.cutout=16 "),
    ],
)
def test_augmentation_that_blanks_images(augment: Augment, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        loader(images(16), batch=2, augment=augment)


@pytest.mark.parametrize(
    ("side", "reductions", "sentence"),
    [
        (8, 3, r"8 x 8 become 1 x 1 after space\.reductions=3 .*at least 9 pixels.* at most space\.reductions=2"),
        (1, 1, r"1 x 1 become 1 x 1 .*at least 3 pixels a side \(an image folder's task\.image_size\)$"),
    ],
)
def test_images_too_small_for_the_reductions(side: int, reductions: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_size((side, side), reductions)


# CIFAR


def read_cifar(root: Path, *, download: bool) -> ImageData:
    from supernet.data.cifar import read_cifar

    return read_cifar(CifarConfig(root=str(root), download=download))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("network is unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.usefixtures("no_network")
def test_cifar_without_network(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_cifar(tmp_path, download=True)
    sentence = str(caught.value)
    words = [str(tmp_path), "network is unreachable", "put cifar-10-python.tar.gz into", "task=image_folder"]
    assert all(word in sentence for word in words) and "corrupt" not in sentence


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("download", [True, False])
def test_cifar_with_an_interrupted_archive(tmp_path: Path, download: bool) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b the first bytes")
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz is incomplete or corrupt"):
        read_cifar(tmp_path, download=download)


def test_cifar_that_may_not_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.download=false.*put cifar-10-python\.tar\.gz"):
        read_cifar(tmp_path, download=False)


def test_cifar_with_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10, cifar
    from torchvision.datasets.utils import calculate_md5

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / CIFAR10.filename).write_bytes(b"whole")
    monkeypatch.setattr(CIFAR10, "tgz_md5", calculate_md5(tmp_path / CIFAR10.filename))
    monkeypatch.setattr(cifar, "download_and_extract_archive", full)
    with pytest.raises(UserError, match="No space left") as caught:
        read_cifar(tmp_path, download=True)
    assert "corrupt" not in str(caught.value)
