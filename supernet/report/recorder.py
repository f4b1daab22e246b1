"""What a run records while it goes: TensorBoard events, and the same scalars as lines of JSON in ``metrics.jsonl``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from supernet.interfaces import State

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"

TAGS = {
    "train_loss": "loss/train",
    "valid_loss": "loss/valid",
    "alpha_loss": "loss/alpha",
    "train_accuracy": "accuracy/train",
    "valid_accuracy": "accuracy/valid",
    "grad_norm": "gradient/weights",
    "alpha_grad_norm": "gradient/alpha",
    "lr": "rate/lr",
    "drop_path": "rate/drop_path",
}
"""Where a scalar stands in TensorBoard, so that curves that belong together share a section."""


class Recorder:
    """Writes below a run directory; each phase is a TensorBoard run of its own, with its own axis of steps.

    Nothing is opened before the first write. By then a resume has said how far its checkpoint had come: what stands
    after that is cut off, so the record of an interrupted run equals that of an undisturbed one.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._writers: dict[str, SummaryWriter] = {}
        self._file: BinaryIO | None = None
        self._bytes = 0
        self._steps: dict[str, int] = {}
        self._laid_out: set[str] = set()

    def scalars(self, phase: str, values: Mapping[str, float], *, step: int, epoch: int) -> None:
        """Record numbers of one moment: a line of JSON, and a point of each curve."""
        line = json.dumps({"phase": phase, "epoch": epoch, "step": step, **values}) + "\n"
        if self._file is None:
            self._file = self._open()
        self._bytes += self._file.write(line.encode())
        self._file.flush()
        writer = self._writer(phase)
        for name, value in values.items():
            writer.add_scalar(TAGS.get(name, name), value, step)
        self._steps[phase] = step

    def image(self, phase: str, tag: str, image_HWC: np.ndarray[Any, Any], step: int) -> None:
        """Record a picture, uint8."""
        self._writer(phase).add_image(tag, image_HWC, step, dataformats="HWC")

    def text(self, phase: str, tag: str, markdown: str, step: int) -> None:
        """Record text."""
        self._writer(phase).add_text(tag, markdown, step)

    def layout(self, phase: str, layout: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
        """Say how the custom-scalars tab arranges curves; said once per phase and process."""
        if phase not in self._laid_out:
            self._writer(phase).add_custom_scalars(layout)
            self._laid_out.add(phase)

    def hparams(self, values: Mapping[str, bool | int | float | str], metrics: Sequence[str]) -> None:
        """Open the session of the HParams tab, at the start, so that running and crashed runs show as well."""
        from torch.utils.tensorboard.summary import hparams

        shown = {k: str(v) if isinstance(v, bool) else v for k, v in values.items()}  # booleans would show as 0
        experiment, start, _ = hparams(shown, dict.fromkeys(metrics, 0.0))
        events = self._writer("")._get_file_writer()
        events.add_summary(experiment)
        events.add_summary(start)
        events.flush()

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Close the session of the HParams tab with the final figures."""
        from torch.utils.tensorboard.summary import hparams

        writer = self._writer("")
        for name, value in metrics.items():
            writer.add_scalar(name, value, 0)
        writer._get_file_writer().add_summary(hparams({}, {})[2])
        self.flush()

    def flush(self) -> None:
        """Bring everything to the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def state_dict(self) -> State:
        return {"bytes": self._bytes, "steps": dict(self._steps)}

    def load_state_dict(self, state: State) -> None:
        assert self._file is None, "a resume comes before the first write"
        self._bytes, self._steps = state["bytes"], dict(state["steps"])

    def _open(self) -> BinaryIO:
        """``metrics.jsonl``, cut to what the checkpoint knows, also where the last line was torn."""
        path = self._run_dir / METRICS
        path.touch()
        file = path.open("r+b")
        file.truncate(self._bytes)
        file.seek(self._bytes)
        return file

    def _writer(self, phase: str) -> SummaryWriter:
        if phase not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            purge = self._steps.get(phase, -1) + 1
            self._writers[phase] = SummaryWriter(str(self._run_dir / EVENTS / phase), purge_step=purge)
        return self._writers[phase]
