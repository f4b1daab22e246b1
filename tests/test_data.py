"""Readers, splits, augmentation and the loader, on data that the tests make themselves."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from supernet.data.augment import Augment
from supernet.data.decode import read_image
from supernet.data.digits import read_digits
from supernet.data.files import Files
from supernet.data.folder import read_folder
from supernet.data.images import ImageData, Images, balanced, check_size, split_indices
from supernet.data.loader import Loader
from supernet.runtime.random import generator
from supernet.schema.tasks import CifarConfig, DigitsConfig, ImageFolderConfig
from supernet.types import Batch

# Python 3.12 and later warn of any fork beside threads; torch's loader forks by default, and its workers start none.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def coded(n: int, channels: int = 3, side: int = 8) -> Images:
    """Images of pixels that differ within each image, with sorted labels of three classes."""
    x_NCHW = torch.randint(1, 256, (n, channels, side, side), dtype=torch.uint8, generator=generator(0, "test"))
    return Images(x_NCHW, torch.arange(n) * 3 // n)


def loader(images: Images, indices_N: Tensor | None = None, **settings: object) -> Loader:
    given_settings: dict[str, object] = {
        "batch": 4,
        "device": "cpu",
        "seed": 0,
        "stream": "test",
        "mean": (0.5,) * images.channels,
        "std": (0.25,) * images.channels,
        "shuffle": True,
        "drop_last": True,
        **settings,
    }
    return Loader(images, indices_N, **given_settings)  # type: ignore[arg-type]


def same(got: list[Batch], wanted: list[Batch]) -> bool:
    return len(got) == len(wanted) and all(
        torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(got, wanted, strict=True)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes, 5 + 3 images each, all of one size, with things beside them that are not images."""
    draws = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 3)):
        for name in ("cat", "ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for n in range(count):
                pixels = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{n}.png")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "cat" / ".DS_Store").write_bytes(b"junk")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("notes")
    return tmp_path


def read(root: Path, limit: int | None = None, **settings: object) -> ImageData:
    return read_folder(ImageFolderConfig(root=str(root), **{"image_size": 8, **settings}), limit=limit)  # type: ignore[arg-type]


# Splits


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.floats(0, 1), st.integers(0, 9))
def test_split_is_disjoint_complete_sorted_and_stratified(labels: list[int], portion: float, seed: int) -> None:
    labels_N = torch.tensor(labels)
    first_N, rest_N = split_indices(labels_N, portion, seed=seed, stream="test")
    assert sorted(first_N.tolist() + rest_N.tolist()) == list(range(len(labels)))
    assert first_N.tolist() == sorted(first_N.tolist()) and rest_N.tolist() == sorted(rest_N.tolist())
    assert abs(len(first_N) - portion * len(labels)) <= 0.5 + 1e-6
    for label in set(labels):
        assert abs(int((labels_N[first_N] == label).sum()) - portion * labels.count(label)) <= 1 + 1e-6


def test_split_is_keyed_by_seed_and_stream() -> None:
    labels_N = torch.arange(100) % 5
    one = split_indices(labels_N, 0.5, seed=1, stream="a")[0]
    assert torch.equal(one, split_indices(labels_N, 0.5, seed=1, stream="a")[0])
    assert not torch.equal(one, split_indices(labels_N, 0.5, seed=2, stream="a")[0])
    assert not torch.equal(one, split_indices(labels_N, 0.5, seed=1, stream="b")[0])


def test_limit_takes_the_first_of_every_class() -> None:
    labels_N = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])
    assert balanced(labels_N, 7).tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert balanced(labels_N, 2).tolist() == [0, 4]
    assert balanced(labels_N, 99).tolist() == list(range(9))


@pytest.mark.parametrize(("side", "reductions"), [(8, 2), (3, 1), (32, 4), (33, 5), (2, 0)])
def test_size_that_suffices(side: int, reductions: int) -> None:
    check_size((side, side), reductions)


# Augmentation


def test_every_sample_has_its_own_crop_and_flip() -> None:
    batch, side, padding = 600, 6, 2
    x_CHW = torch.arange(1, 1 + 3 * side * side, dtype=torch.uint8).view(3, side, side)
    x_BCHW = Augment(padding, flip=True).move(x_CHW.expand(batch, -1, -1, -1), generator(0, "test"))
    padded = torch.nn.functional.pad(x_CHW, [padding] * 4)
    places = range(2 * padding + 1)
    windows = {(y, x): padded[:, y : y + side, x : x + side] for y in places for x in places}
    wanted = {(place, flip): w.flip(2) if flip else w for place, w in windows.items() for flip in (False, True)}
    seen = [next(key for key, w in wanted.items() if torch.equal(w, sample)) for sample in x_BCHW]
    assert set(seen) == set(
        wanted
    )  # 50 kinds among 600 samples: one is missing with a chance of 3e-4 for a random seed
    assert 0.4 < sum(flip for _, flip in seen) / batch < 0.6


def test_cutout_is_a_clipped_square_with_a_uniform_centre() -> None:
    batch, side, cutout = 4000, 8, 4
    x_BCHW = Augment(cutout=cutout).cut(torch.ones(batch, 2, side, side), generator(0, "test"))
    assert torch.equal(x_BCHW[:, 0], x_BCHW[:, 1])
    cut_BHW = x_BCHW[:, 0] == 0
    rows_B, columns_B = cut_BHW.any(2).sum(1), cut_BHW.any(1).sum(1)
    assert torch.equal(cut_BHW.sum((1, 2)), rows_B * columns_B)  # a rectangle
    # Published: rows from max(0, c - 2) to min(8, c + 2) for a centre c that is uniform over 0..7.
    lengths = [min(side, c + 2) - max(0, c - 2) for c in range(side)]
    for counts_B in (rows_B, columns_B):
        shares = torch.bincount(counts_B, minlength=5) / batch
        torch.testing.assert_close(shares, torch.bincount(torch.tensor(lengths), minlength=5) / side, atol=0.03, rtol=0)


def test_padding_is_black_and_cutout_is_the_mean_colour() -> None:
    white = Images(torch.full((64, 1, 8, 8), 255, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64))
    (batch,) = loader(white, batch=64, augment=Augment(crop_padding=3, cutout=4)).epoch(0)
    assert set(batch.x.unique().tolist()) == {-2.0, 0.0, 2.0}  # (0 - 0.5) / 0.25, cut out, (1 - 0.5) / 0.25


def test_an_augmentation_that_is_off_changes_nothing() -> None:
    x_BCHW = coded(5).pixels
    assert isinstance(x_BCHW, Tensor)
    assert torch.equal(Augment()(x_BCHW, generator(0, "test")), x_BCHW)


# Loader


def test_normalised_training_epoch() -> None:
    images = coded(14)
    indices_N = torch.arange(1, 14)
    batches = list(loader(images, indices_N).epoch(0))
    assert [len(b.y) for b in batches] == [4, 4, 4] == [4] * len(loader(images, indices_N))
    x_NCHW, _ = images.on(torch.device("cpu"))
    wanted = {x.sum().item(): i for i, x in enumerate(x_NCHW.int())}
    raw_NCHW = ((torch.cat([b.x for b in batches]) * 0.25 + 0.5) * 255).round().int()
    rows = [wanted[x.sum().item()] for x in raw_NCHW]
    assert len(set(rows)) == 12 and 0 not in rows
    assert torch.equal(torch.cat([b.y for b in batches]), images.labels_N[rows])
    assert torch.equal(raw_NCHW, x_NCHW[rows].int())


def test_an_epoch_goes_on_from_any_batch() -> None:
    train = loader(coded(30), augment=Augment(2, True, 3))
    whole = list(train.epoch(3))
    for start in range(len(train) + 1):
        assert same(list(train.epoch(3, start)), whole[start:])


def test_order_and_augmentation_are_keyed() -> None:
    images = coded(40)
    still, moved = loader(images), loader(images, augment=Augment(2, True, 3))
    assert not same(list(still.epoch(0)), list(still.epoch(1)))
    assert not same(list(still.epoch(0)), list(loader(images, seed=1).epoch(0)))
    assert not same(list(still.epoch(0)), list(loader(images, stream="other").epoch(0)))
    ys = [[b.y for b in train.epoch(0)] for train in (still, moved)]
    assert torch.equal(torch.cat(ys[0]), torch.cat(ys[1]))  # augmentation does not change the order
    first = Images(torch.full((8, 3, 8, 8), 9, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    one, two = loader(first, augment=Augment(cutout=3)).epoch(0)
    assert not torch.equal(one.x, two.x)  # nor is it the same in every batch


def test_an_epoch_leaves_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    list(loader(coded(20), augment=Augment(2, True, 3)).epoch(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("n", "batch"), [(9, 4), (8, 4), (3, 4), (65, 64), (130, 64)])
def test_evaluation_holds_every_image_once_in_even_batches(n: int, batch: int) -> None:
    evaluation = loader(coded(n), batch=batch, shuffle=False, drop_last=False)
    batches = list(evaluation.epoch(0))
    sizes = [len(b.y) for b in batches]
    assert len(sizes) == len(evaluation) and sum(sizes) == n
    assert max(sizes) <= batch and max(sizes) - min(sizes) <= 1
    assert torch.equal(torch.cat([b.y for b in batches]).sort().values, coded(n).labels_N)


def test_evaluation_batches_are_mixed_and_always_the_same() -> None:
    evaluation = loader(coded(300), batch=50, shuffle=False, drop_last=False)
    batches = list(evaluation.epoch(0))
    assert all(len(b.y.unique()) == 3 for b in batches)  # the labels are sorted
    assert same(batches, list(evaluation.epoch(7)))
    assert same(batches, list(loader(coded(300), batch=50, shuffle=False, drop_last=False, seed=5).epoch(0)))


def test_max_steps_ends_an_epoch_early() -> None:
    short, whole = loader(coded(30), max_steps=2), loader(coded(30))
    assert len(short) == 2 and same(list(short.epoch(0)), list(whole.epoch(0))[:2])
    assert len(loader(coded(30), max_steps=99)) == len(whole)


def test_loaders_share_the_images_on_a_device() -> None:
    images = coded(8)
    device = torch.device("meta")  # a device that is not where the images are
    assert images.on(device)[0] is images.on(device)[0]


# Streaming


@forks
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_streamed_epoch_equals_a_resident_one(folder: Path, workers: int) -> None:
    resident, streamed = read(folder), read(folder, resident_mb=0)
    assert isinstance(resident.train.pixels, Tensor) and isinstance(streamed.train.pixels, Files)
    assert (resident.mean, resident.std) == (streamed.mean, streamed.std)
    augment = Augment(2, True, 3)
    wanted = loader(resident.train, augment=augment)
    got = loader(streamed.train, augment=augment, workers=workers)
    before = torch.get_rng_state()
    for epoch in (0, 1):
        assert same(list(got.epoch(epoch)), list(wanted.epoch(epoch)))
    assert same(list(got.epoch(1, start=2)), list(wanted.epoch(1, start=2)))
    assert torch.equal(before, torch.get_rng_state())


@forks
def test_workers_end_with_their_epoch(folder: Path) -> None:
    streamed = loader(read(folder, resident_mb=0).train, batch=2, workers=2)
    list(streamed.epoch(0))
    assert not multiprocessing.active_children()
    broken_off = streamed.epoch(1)
    next(broken_off)
    assert multiprocessing.active_children()
    del broken_off
    assert not multiprocessing.active_children()


@forks
def test_workers_leave_signals_to_the_main_process(folder: Path) -> None:
    data = read(folder, resident_mb=0).train
    wanted = list(loader(data, batch=2).epoch(0))
    epoch = loader(data, batch=2, workers=1).epoch(0)
    got = [next(epoch)]
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    assert same(got + list(epoch), wanted)


# Readers


def test_folder(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = read(folder, crop_padding=1, flip=False)
    assert (data.name, data.classes, data.crop_padding, data.flip) == ("image_folder", ("ant", "bee", "cat"), 1, False)
    assert (len(data.train), len(data.test), data.train.channels, data.train.size) == (15, 9, 3, (8, 8))
    assert data.train.labels_N.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    x_NCHW = data.train.pixels
    assert isinstance(x_NCHW, Tensor)
    wanted_HWC = torch.from_numpy(np.array(Image.open(folder / "train" / "bee" / "2.png")))
    assert torch.equal(x_NCHW[7], wanted_HWC.permute(2, 0, 1))
    values = x_NCHW.double() / 255
    torch.testing.assert_close(torch.tensor(data.mean).double(), values.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(data.std).double(), values.std((0, 2, 3), correction=0))
    assert "notes.txt" in caplog.text and ".DS_Store" not in caplog.text


def test_folder_with_limit_and_grey(folder: Path) -> None:
    data = read(folder, limit=7, grey=True)
    assert data.train.labels_N.tolist() == [0, 0, 0, 1, 1, 2, 2] == data.test.labels_N.tolist()
    assert data.train.channels == 1 and len(data.mean) == 1


def _saved(path: Path, image: Image.Image, transparency: int | None = None) -> Tensor:
    image.save(path, transparency=transparency)
    return read_image(path, 4, 3)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda p: _saved(p, Image.new("L", (4, 4), 77)), (77, 77, 77)),
        (lambda p: _saved(p, Image.new("1", (4, 4), 1)), (255, 255, 255)),
        (lambda p: _saved(p, Image.fromarray(np.full((4, 4), 77 * 256 + 3, dtype=np.uint16))), (77, 77, 77)),
        (lambda p: _saved(p, Image.new("RGB", (4, 4), (1, 2, 3)).quantize(4)), (1, 2, 3)),
        (lambda p: _saved(p, Image.new("P", (4, 4), 0), transparency=0), (0, 0, 0)),
        (lambda p: _saved(p, Image.new("RGBA", (4, 4), (200, 100, 50, 0))), (0, 0, 0)),
        (lambda p: _saved(p, Image.new("RGBA", (4, 4), (200, 100, 50, 255))), (200, 100, 50)),
        (lambda p: _saved(p, Image.new("LA", (4, 4), (90, 255))), (90, 90, 90)),
        (lambda p: _saved(p, Image.new("RGB", (1, 1), (5, 6, 7))), (5, 6, 7)),
    ],
    ids=["grey", "black-white", "16-bit", "palette", "palette-clear", "clear", "opaque", "grey-alpha", "one-pixel"],
)
def test_kinds_of_images(tmp_path: Path, make: Callable[[Path], Tensor], wanted: tuple[int, int, int]) -> None:
    x_CHW = make(tmp_path / "image.png")
    assert x_CHW.dtype == torch.uint8
    assert torch.equal(x_CHW, torch.tensor(wanted, dtype=torch.uint8)[:, None, None].expand(3, 4, 4))


def test_shorter_side_fits_and_the_middle_is_kept(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24), dtype=np.uint8)
    pixels[:, 6:18] = 200  # a wide image with a bright middle
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert read_image(tmp_path / "wide.png", 4, 1).unique().tolist() == [200]
    Image.fromarray(pixels).save(tmp_path / "wide.tif")
    assert torch.equal(read_image(tmp_path / "wide.tif", 8, 1), torch.full((1, 8, 8), 200, dtype=torch.uint8))


def test_photographs_stand_upright(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16), dtype=np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    x_CHW = read_image(tmp_path / "turned.png", 16, 1)
    assert x_CHW[0, 0, 0] == 0 and x_CHW[0, 15, 0] == 255


def test_digits() -> None:
    data = read_digits(DigitsConfig())
    assert (len(data.train), len(data.test), len(data.classes)) == (1438, 359, 10)
    assert (data.train.channels, data.train.size) == (1, (8, 8))
    counts = torch.bincount(data.test.labels_N)
    assert counts.min() >= 34 and counts.max() <= 37
    x_NCHW = data.train.pixels
    assert isinstance(x_NCHW, Tensor)
    assert x_NCHW.dtype == torch.uint8 and (x_NCHW.min(), x_NCHW.max()) == (0, 255)
    small = read_digits(DigitsConfig(), limit=20)
    assert torch.bincount(small.train.labels_N).tolist() == [2] * 10 == torch.bincount(small.test.labels_N).tolist()
    assert (small.mean, small.std) == (data.mean, data.std)


def fake_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The smallest archive content that torchvision takes for CIFAR: its own layout, other checksums."""
    from torchvision.datasets.utils import calculate_md5

    from supernet.data.cifar import SETS

    kind = SETS[name]
    fine = "fine_labels" if name == "cifar100" else "labels"
    names = [f"class{k}" for k in range(10)]
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)

    def write(file: str, content: object) -> str:
        (folder / file).write_bytes(pickle.dumps(content))
        return str(calculate_md5(folder / file))

    entry = {"data": pixels, fine: [n % 10 for n in range(20)]}
    monkeypatch.setattr(kind, "train_list", [[file, write(file, entry)] for file, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[file, write(file, entry)] for file, _ in kind.test_list])
    meta = dict(kind.meta)
    meta["md5"] = write(meta["filename"], {meta["key"]: names})
    monkeypatch.setattr(kind, "meta", meta)


@pytest.mark.parametrize(("name", "train"), [("cifar10", 100), ("cifar100", 20)])
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, train: int) -> None:
    from supernet.data.cifar import CIFAR10_MEAN, read_cifar

    fake_cifar(tmp_path, monkeypatch, name)
    data = read_cifar(CifarConfig(name=name, root=str(tmp_path), download=False))
    assert (len(data.train), len(data.test), data.train.channels, data.train.size) == (train, 20, 3, (32, 32))
    x_NCHW = data.test.pixels
    assert isinstance(x_NCHW, Tensor)
    first = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)[0]
    assert torch.equal(x_NCHW[0].flatten(), torch.from_numpy(first))
    assert (data.mean == CIFAR10_MEAN) == (name == "cifar10")
    limited = read_cifar(CifarConfig(name=name, root=str(tmp_path)), limit=10)
    assert limited.train.labels_N.tolist() == list(range(10))


@pytest.mark.filterwarnings("ignore:.*filter extracted tar:DeprecationWarning")  # torchvision's, from Python 3.12 on
def test_cifar_archive_in_the_folder_is_unpacked_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import calculate_md5

    from supernet.data.cifar import read_cifar

    fake_cifar(tmp_path / "made", monkeypatch, "cifar10")
    (tmp_path / "root").mkdir()
    archive = tmp_path / "root" / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / CIFAR10.base_folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", calculate_md5(archive))
    assert len(read_cifar(CifarConfig(root=str(tmp_path / "root"), download=False)).train) == 100
