"""What tests of whole jobs share."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from supernet.build import build_search, build_space, build_task
from supernet.config import compose
from supernet.interfaces import State
from supernet.loop import Services, run_epoch
from supernet.report.progress import Progress
from supernet.report.recorder import Recorder
from supernet.runtime.packing import pack, unpack
from supernet.runtime.signals import Interrupt
from supernet.schema import Config
from supernet.search import Search
from supernet.tasks.images import ImageClassification

TINY = [
    "+experiment=darts_digits",
    "debug=fast",
    "space.nodes=2",
    "limit.images=96",
    "threads=1",
]
"""An experiment that takes a second or two."""


OPEN: list[Recorder] = []
"""Recorders of the running test; a fixture in conftest.py closes them."""


def services(folder: Path) -> Services:
    """Real services that write below ``folder``."""
    OPEN.append(Recorder(folder))
    return Services(torch.device("cpu"), OPEN[-1], Progress(), Interrupt())


def tiny_config(*overrides: str) -> Config:
    """TINY with some of its keys overridden, and others given."""
    merged = {text.split("=", 1)[0]: text for text in (*TINY, *overrides)}
    return compose(list(merged.values()))


def make_search(folder: Path, *overrides: str, task: ImageClassification | None = None) -> Search:
    """A search at its first step."""
    config = tiny_config(*overrides, f"run_dir={folder}")
    task = task or build_task(config)
    return build_search(config, task, build_space(config, task), services(folder))


def saved(state: State) -> State:
    """As it comes back from a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.pt"
        path.write_bytes(pack({"state": state}))
        back: State = unpack(path)["state"]
    return back


def run_epochs(search: Search) -> Search:
    """Run a search to its end, without checkpoints."""
    while search.epoch < search.epochs and search.stopped is None:
        run_epoch(search)
    return search


def tiny_space_config(space: str, *overrides: str) -> Config:
    """TINY in another space than that of DARTS, with some of its keys overridden, and others given."""
    kept = [text for text in TINY if not text.startswith("space.")]
    given = [*kept, f"space={space}", "retrain.auxiliary_weight=0", *overrides]
    if not any(text.startswith("run_dir=") for text in given):
        given.append("run_dir=unused")
    return compose(list({text.split("=", 1)[0]: text for text in given}.values()))
