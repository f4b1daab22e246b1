"""What a run records while it goes: TensorBoard events, the same scalars as lines of JSON in ``metrics.jsonl``, and the
history of its epochs."""

from __future__ import annotations

import json
import logging
import os
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from supernet.interfaces import State
from supernet.report.history import FILE, History, finite
from supernet.report.history_reader import parse_history
from supernet.runtime.files import write_atomic
from supernet.runtime.signals import Interrupted

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
    "temperature": "rate/temperature",
    "derived_accuracy": "accuracy/derived",
    "derived_loss": "loss/derived",
    "discretisation_gap": "watch/discretisation_gap",
    "eigenvalue": "watch/eigenvalue",
}
"""Where a scalar stands in TensorBoard, so that curves that belong together share a section."""


class Recorder:
    """Writes below a run directory; each phase is a TensorBoard run of its own, with its own axis of steps.

    Nothing is opened before the first write. By then a resume has said how far its checkpoint had come: what stands
    after that is cut off, so the record of an interrupted run equals that of an undisturbed one.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self.history = History()
        self._kept = self.history.to_text()
        self._writers: dict[str, SummaryWriter] = {}
        self._file: BinaryIO | None = None
        self._bytes = 0
        self._steps: dict[str, int] = {}
        self._laid_out: set[str] = set()
        self._session = False

    def scalars(self, phase: str, values: Mapping[str, float], *, step: int, epoch: int) -> None:
        """Record numbers of one moment: a line of JSON (null where one is not finite), and a point of each curve."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        written = finite(values)
        self.history.row(phase, epoch, step).figures |= written
        line = json.dumps({"phase": phase, "epoch": epoch, "step": step, **written}) + "\n"
        if self._file is None:
            self._file = self._open()
        self._bytes += self._file.write(line.encode())
        self._file.flush()
        # One event for all of them: hundreds of events, one for each operation and edge, take ten times as long.
        points = [Summary.Value(tag=TAGS.get(name, name), simple_value=value) for name, value in values.items()]
        self._events(phase).add_summary(Summary(value=points), step)
        self._steps[phase] = step

    def times(self, phase: str, values: Mapping[str, float], *, step: int, epoch: int) -> None:
        """Record figures of the machine, which no two runs share: they are not in ``metrics.jsonl``."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self.history.row(phase, epoch, step).times |= finite(values)
        points = [Summary.Value(tag=f"machine/{name}", simple_value=value) for name, value in values.items()]
        self._events(phase).add_summary(Summary(value=points), step)

    def image(self, phase: str, tag: str, png: bytes, step: int) -> None:
        """Record a picture."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
        self._events(phase).add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

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

        # TensorBoard keeps the first status that it reads of a run: what an interrupted process said is taken back.
        for old in (self._run_dir / EVENTS).glob("events.out.tfevents.*"):
            old.unlink()
        shown = {k: str(v) if isinstance(v, bool) else v for k, v in values.items()}  # booleans would show as 0
        experiment, start, _ = hparams(shown, dict.fromkeys(metrics, 0.0))
        events = self._events("")
        events.add_summary(experiment)
        events.add_summary(start)
        events.flush()
        self._session = True

    def finish(self, metrics: Mapping[str, float], status: str = "SUCCESS") -> None:
        """Close the session of the HParams tab with the final figures; ``status`` is "SUCCESS" or "FAILURE"."""
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        end = plugin_data_pb2.SessionEndInfo(status=api_pb2.Status.Value(f"STATUS_{status}"), end_time_secs=time.time())
        content = plugin_data_pb2.HParamsPluginData(session_end_info=end, version=metadata.PLUGIN_DATA_VERSION)
        plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=content.SerializeToString())
        session = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=SummaryMetadata(plugin_data=plugin))
        figures = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._events("").add_summary(Summary(value=[*figures, session]), 0)
        self._session = False
        self.flush()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; an error ends the session as failed, an interruption leaves it open for the process that resumes."""
        if self._session and kind is not None and not issubclass(kind, Interrupted):
            self.finish({}, "FAILURE")
        self.close()

    def flush(self) -> None:
        """Bring everything to the disk."""
        if (text := self.history.to_text()) != self._kept:
            write_atomic(self._run_dir / FILE, text)
            self._kept = text
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
        return {"bytes": self._bytes, "steps": dict(self._steps), "history": self.history.to_text()}

    def load_state_dict(self, state: State) -> None:
        """Go on where a checkpoint stands: what was recorded after it is cut off at the next write."""
        self.close()
        self._bytes, self._steps = state["bytes"], dict(state["steps"])
        self.history, self._kept = parse_history(state["history"], "the checkpoint's history"), state["history"]

    def _open(self) -> BinaryIO:
        """``metrics.jsonl``, cut to what the checkpoint knows, also where the last line was torn."""
        self._run_dir.mkdir(parents=True, exist_ok=True)
        path = self._run_dir / METRICS
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        file = path.open("r+b")
        there = path.stat().st_size
        if there < self._bytes:
            logging.getLogger(__name__).warning("%s is shorter than when the checkpoint was written", path)
            self._bytes = file.read().rfind(b"\n") + 1
        file.truncate(self._bytes)
        file.seek(self._bytes)
        return file

    def _writer(self, phase: str) -> SummaryWriter:
        if phase not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            purge = self._steps.get(phase, -1) + 1
            self._writers[phase] = SummaryWriter(str(self._run_dir / EVENTS / phase), purge_step=purge)
        return self._writers[phase]

    def _events(self, phase: str) -> Any:
        """The writer below torch's, which takes summaries as they are."""
        return self._writer(phase)._get_file_writer()
