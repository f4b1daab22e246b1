"""The typed configuration: every key, its default, what it may be, and what it means. Imports no torch.

The defaults are the published DARTS recipe (Liu, Simonyan, Yang, ICLR 2019, arXiv:1806.09055, appendix A.1). Where the
paper and the published code differ, the comment says which one is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from supernet.registry import register


def _bounds(**bounds: float | None) -> dict[str, Any]:
    return {name: bound for name, bound in bounds.items() if bound is not None}


def ranged(
    default: Any, *, ge: float | None = None, gt: float | None = None, le: float | None = None, lt: float | None = None
) -> Any:
    """A field with bounds, checked once after composing (``supernet.config.check``)."""
    return field(default=default, metadata=_bounds(ge=ge, gt=gt, le=le, lt=lt))


def choice(default: str, *choices: str) -> Any:
    """A field that takes one of a few words."""
    return field(default=default, metadata={"choices": choices})


def worded(default: str, pattern: str, meaning: str) -> Any:
    """A text field that must match ``pattern`` as a whole; ``meaning`` says so to people."""
    return field(default=default, metadata={"pattern": pattern, "meaning": meaning})


def listed(
    *default: Any, length: int | None = None, unique: bool = False, ge: float | None = None, lt: float | None = None
) -> Any:
    """A list field; bounds hold for its elements, ``unique`` also asks for at least one."""
    metadata = _bounds(length=length, ge=ge, lt=lt) | ({"unique": True} if unique else {})
    return field(default_factory=lambda: list(default), metadata=metadata)


@dataclass
class AlphaConfig:
    """Architecture parameters; what depends on the data. An update's own settings multiply or complete these."""

    lr: float = ranged(3e-4, gt=0)
    # The paper starts alpha at zero, its code at 1e-3 * randn; zero, as in the paper, treats all operations alike.
    init_std: float = ranged(0.0, ge=0)


@dataclass
class SearchConfig:
    """Training the supernet."""

    epochs: int = ranged(50, ge=1)
    batch: int = ranged(64, ge=2)
    channels: int = ranged(16, ge=1)
    cells: int = ranged(8, ge=1)
    train_portion: float = ranged(0.5, gt=0, lt=1)  # of the training split, for weights; the rest is for alpha
    lr: float = ranged(0.025, gt=0)
    lr_min: float = ranged(0.0, ge=0)  # the paper anneals to zero, its code to 0.001
    momentum: float = ranged(0.9, ge=0, lt=1)
    weight_decay: float = ranged(3e-4, ge=0)
    grad_clip: float = ranged(5.0, gt=0)
    # The paper normalises with batch statistics throughout the search, its code evaluates with running ones.
    statistics: str = choice("batch", "batch", "running")
    alpha: AlphaConfig = field(default_factory=AlphaConfig)


@dataclass
class RetrainConfig:
    """Training the derived child from scratch."""

    epochs: int = ranged(600, ge=1)
    batch: int = ranged(96, ge=2)
    channels: int = ranged(36, ge=1)
    cells: int = ranged(20, ge=1)
    lr: float = ranged(0.025, gt=0)
    lr_min: float = ranged(0.0, ge=0)
    momentum: float = ranged(0.9, ge=0, lt=1)
    weight_decay: float = ranged(3e-4, ge=0)
    grad_clip: float = ranged(5.0, gt=0)
    auxiliary_weight: float = ranged(0.4, ge=0)  # 0 builds no auxiliary head
    drop_path: float = ranged(0.2, ge=0, lt=1)  # reached by a linear ramp over the epochs
    cutout: int = ranged(16, ge=0)  # side of the square that is cut out, in pixels; 0 for none
    # Held out from the training split to watch the retraining (and to choose settings on); nothing is selected on it.
    valid_portion: float = ranged(0.0, ge=0, lt=1)


@dataclass
class LimitConfig:
    """Upper bounds that ``debug`` sets and nothing else does; applied with ``min`` after composing."""

    epochs: int | None = ranged(None, ge=1)
    steps: int | None = ranged(None, ge=1)  # of an epoch
    images: int | None = ranged(None, ge=1)  # of a split
    batch: int | None = ranged(None, ge=2)
    channels: int | None = ranged(None, ge=1)
    cells: int | None = ranged(None, ge=1)


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


@dataclass
class DartsConfig:
    """The DARTS cell space."""

    name: str = "darts"
    nodes: int = ranged(4, ge=1)
    reductions: int = ranged(2, ge=0)
    stem_multiplier: int = ranged(3, ge=1)
    operations: list[str] = listed(
        "none",
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
        unique=True,
    )


@dataclass
class SoftmaxConfig:
    """p = softmax(alpha) over the options of a decision (DARTS, eq. 2)."""

    name: str = "softmax"


@dataclass
class FirstOrderConfig:
    """Alpha follows the gradient of the validation loss at the current weights (DARTS, eq. 7 with xi = 0)."""

    name: str = "first_order"
    lr_factor: float = ranged(1.0, gt=0)  # times search.alpha.lr
    betas: list[float] = listed(0.5, 0.999, length=2, ge=0, lt=1)
    weight_decay: float = ranged(1e-3, ge=0)


@dataclass
class UnrolledConfig(FirstOrderConfig):
    """Alpha follows the gradient through one virtual weight step (DARTS, eq. 7 and 8)."""

    name: str = "unrolled"
    epsilon: float = ranged(0.01, gt=0)  # finite difference: epsilon / norm of the gradient, as published


@dataclass
class SingleLevelConfig(FirstOrderConfig):
    """Alpha and weights descend the same loss on the same batches, drawn from the whole training split."""

    name: str = "single_level"


@dataclass
class Top2Config:
    """Per node, the two incoming edges whose best operation other than ``none`` is strongest (DARTS, section 2.4)."""

    name: str = "top2"


@dataclass
class Config:
    """The root. ``experiment`` files set what depends on the data, ``method`` files choose parts."""

    # Names the run's directory and its curves.
    name: str = worded(
        "run", r"[A-Za-z0-9][\w.+-]*", "letters, digits and any of _ . + -, beginning with one of the first two"
    )
    seed: int = ranged(0, ge=0, lt=2**63)
    method: str = "darts"
    run_dir: str = worded(MISSING, r".+", "a directory")
    resume: str = choice("never", "never", "auto")
    device: str = worded("auto", r"auto|cpu|mps|cuda(:\d+)?", "auto, cpu, mps, cuda or cuda:N")
    threads: int = ranged(0, ge=0)  # 0 leaves torch's own number
    engine: str = choice("banked", "banked", "plain")  # how the supernet is computed; the mathematics is the same
    precision: str = choice("fp32", "fp32", "bf16")  # of products, by autocast; statistics and weights stay in fp32
    memory_format: str = choice("channels_last", "channels_last", "contiguous")
    compile: bool = False
    deterministic: bool = False
    plugins: list[str] = listed()
    genotype: str | None = None
    task: Any = MISSING
    space: Any = MISSING
    relaxation: Any = MISSING
    update: Any = MISSING
    modifier: dict[str, Any] = field(default_factory=dict)
    derive: Any = MISSING
    search: SearchConfig = field(default_factory=SearchConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    limit: LimitConfig = field(default_factory=LimitConfig)


register("task", "digits", DigitsConfig, "supernet.tasks.images:digits")
register("task", "cifar10", CifarConfig, "supernet.tasks.images:cifar")
register("task", "cifar100", CifarConfig, "supernet.tasks.images:cifar")
register("task", "image_folder", ImageFolderConfig, "supernet.tasks.images:image_folder")
register("space", "darts", DartsConfig, "supernet.spaces.darts:from_config")
register("relaxation", "softmax", SoftmaxConfig, "supernet.relaxations:Softmax")
register("update", "first_order", FirstOrderConfig, "supernet.updates.first_order:FirstOrder")
register("update", "unrolled", UnrolledConfig, "supernet.updates.unrolled:Unrolled")
register("update", "single_level", SingleLevelConfig, "supernet.updates.single_level:SingleLevel")
register("derive", "top2", Top2Config, "supernet.derive.top2:Top2")
