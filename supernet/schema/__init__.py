"""The typed configuration: every key, its default, what it may be, and what it means. Imports no torch.

This file holds the root and what no part can be exchanged for; the parts of each group stand in a file of their own.
The defaults are the published DARTS recipe (Liu, Simonyan, Yang, ICLR 2019, arXiv:1806.09055, appendix A.1). Where the
paper and the published code differ, the comment says which one is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from supernet.schema import (  # noqa: F401 (they register)
    benchmarks,
    derivations,
    modifiers,
    relaxations,
    sampling,
    spaces,
    strategies,
    tasks,
    updates,
)
from supernet.schema.fields import choice, listed, ranged, worded
from supernet.schema.watch import WatchConfig


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
    # Epochs until the rate is back at lr, each time twice as many (SGDR, arXiv:1608.03983); null: it never is.
    lr_cycle: int | None = ranged(None, ge=1)
    momentum: float = ranged(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = ranged(3e-4, ge=0)
    grad_clip: float = ranged(5.0, gt=0)
    # The paper normalises with batch statistics throughout the search, its code evaluates with running ones.
    statistics: str = choice("batch", "batch", "running")
    alpha: AlphaConfig = field(default_factory=AlphaConfig)


@dataclass
class RetrainConfig:
    """Training the derived child from scratch."""

    epochs: int = ranged(600, ge=0)  # 0 ends the run after the derivation: no child is trained, and none tested
    batch: int = ranged(96, ge=2)
    channels: int = ranged(36, ge=1)
    cells: int = ranged(20, ge=1)
    lr: float = ranged(0.025, gt=0)
    lr_min: float = ranged(0.0, ge=0)
    lr_cycle: int | None = ranged(None, ge=1)  # as of the search
    momentum: float = ranged(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = ranged(3e-4, ge=0)
    grad_clip: float = ranged(5.0, gt=0)
    auxiliary_weight: float = ranged(0.4, ge=0)  # 0 builds no auxiliary head
    drop_path: float = ranged(0.2, ge=0, lt=1)  # reached by a linear ramp over the epochs
    cutout: int = ranged(16, ge=0)  # side of the square that is cut out, in pixels; 0 for none
    # Held out from the training split to watch the retraining (and to choose settings on); nothing is selected on it.
    valid_portion: float = ranged(0.0, ge=0, lt=1)


@dataclass
class CheckpointConfig:
    """Which checkpoints of each job are written, beside those after every epoch and on a signal; and which stay."""

    minutes: float | None = ranged(15.0, gt=0)  # within an epoch, one when so much time has passed; null: none
    keep_last: int = ranged(2, ge=2)  # ends of epochs; with one, a file that rots would be the end of the run
    keep_best: int = ranged(0, ge=0, le=1)  # 1 keeps best.pt: the epoch with the best validation accuracy


@dataclass
class NonFiniteConfig:
    """What to do where a loss, a gradient or a parameter is NaN or infinite. It is reported in any case."""

    policy: str = choice("stop", "stop", "rollback")  # rollback: to the epoch's beginning, with smaller learning rates
    factor: float = ranged(0.5, gt=0, lt=1)  # of the rates of weights and alpha, at each rollback
    rollbacks: int = ranged(3, ge=1)  # of a search, a derivation or a retraining, at most


@dataclass
class MemoryConfig:
    """What to do where memory is short."""

    # A batch is computed in so many parts, one of which at a time is in memory; a batch norm sees one part. null: one,
    # and on resume as many as the run has come to.
    micro_batches: int | None = ranged(None, ge=1)
    on_oom: str = choice("stop", "stop", "halve")  # halve: go on with the parts half as large


@dataclass
class LimitConfig:
    """Upper bounds that ``debug`` sets and nothing else does; applied with ``min`` after composing."""

    epochs: int | None = ranged(None, ge=1)
    steps: int | None = ranged(None, ge=1)  # of an epoch
    queries: int | None = ranged(None, ge=1)  # of a derivation that judges subgraphs
    images: int | None = ranged(None, ge=1)  # of a split
    batch: int | None = ranged(None, ge=2)
    channels: int | None = ranged(None, ge=1)
    cells: int | None = ranged(None, ge=1)


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
    engine: str = choice("compiled", "compiled", "banked", "plain")  # the mathematics is the same
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
    benchmark: Any = None
    search: SearchConfig = field(default_factory=SearchConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    nonfinite: NonFiniteConfig = field(default_factory=NonFiniteConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    limit: LimitConfig = field(default_factory=LimitConfig)
