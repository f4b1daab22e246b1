"""Batches of files that are decoded while training goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from types import FrameType

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from supernet.data.decode import UnreadableImage
from supernet.data.files import Files
from supernet.errors import UserError

_GRACE_SECONDS = 20


class _Rows(Dataset[Tensor | str]):
    """Decodes a whole batch per item; a file gone bad comes back as text, because workers mangle exceptions."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def __getitem__(self, rows: Sequence[int]) -> Tensor | str:
        try:
            return self.files.read(rows)
        except UnreadableImage as error:
            return str(error)


def stream_batches(
    files: Files, rows: Sequence[Sequence[int]], workers: int, seed: int, device: torch.device
) -> Iterator[Tensor]:
    """``x_BCHW`` uint8 on the device, for each list of rows in turn, decoded ahead by worker processes.

    The workers live as long as the iterator does, and draw nothing: any number of them gives the same batches. ``seed``
    is for torch, which would otherwise take the workers' seed from the global random state.
    """
    batches = DataLoader(
        _Rows(files),
        batch_size=None,
        sampler=rows,
        num_workers=min(workers, _cores()),  # torch warns of more than there are cores
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=_quiet_worker,
        pin_memory=device.type == "cuda",
    )
    for batch in batches:
        if isinstance(batch, str):
            raise UserError(f"{batch}; it could be read when the run began")
        yield batch.to(device, non_blocking=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quiet_worker(_: int) -> None:
    """Leave signals to the main process, which finishes its step and saves; they often go to the whole process group.

    A worker must still end by SIGTERM at last, since that is how Python ends workers that are left over at its exit.
    """

    def end_later(_signal: int, _frame: FrameType | None) -> None:
        signal.alarm(_GRACE_SECONDS)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_later if hasattr(signal, "alarm") else signal.SIG_DFL)
