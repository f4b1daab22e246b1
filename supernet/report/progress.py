"""How far a run is: a bar in a terminal, plain lines in a pipe, a file or CI, and always a log in the run directory."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

PLAIN_EVERY = 30.0
"""Seconds between two plain lines within an epoch."""

SHOWN = ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "lr")
"""What the line of an epoch tells; everything is in metrics.jsonl and TensorBoard."""


class Progress:
    """Shows one phase after another; ``log`` is a file that gets the plain lines in any case."""

    def __init__(self, log: Path | None = None) -> None:
        self._console = Console()
        self._bar: RichProgress | None = None
        if self._console.is_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[values]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self._console,
            )
        self._log = log
        self._phase, self._done, self._total, self._first = "", 0, 0, 0
        self._begun = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, phase: str, total: int, done: int = 0) -> None:
        """Begin a phase of ``total`` steps, of which an earlier process has done ``done``."""
        self._phase, self._total, self._done, self._first = phase, total, done, done
        self._begun = self._said = time.monotonic()
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(phase, total=total, completed=done, values="")

    def advance(self) -> None:
        """One step is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0])

    def show(self, *, epoch: int, **values: float) -> None:
        """Numbers of the running epoch."""
        text = "  ".join([f"epoch {epoch}", *_words(values)])
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], values=text)
        elif time.monotonic() - self._said > PLAIN_EVERY:
            self._line(f"{self._phase}  {text}  step {self._done}/{self._total}  {self._left()}")

    def epoch(self, phase: str, epoch: int, epochs: int, values: Mapping[str, float]) -> None:
        """The line of an epoch that has ended."""
        shown = _words({name: values[name] for name in SHOWN if name in values})
        self._line("  ".join([f"{phase} epoch {epoch}/{epochs}", *shown, self._left()]))

    def message(self, text: str) -> None:
        """Text above the bar."""
        self._line(text)

    def _line(self, text: str) -> None:
        self._said = time.monotonic()
        if self._bar is not None:
            self._console.print(text, soft_wrap=True, markup=False, emoji=False)
        else:
            print(text, flush=True, file=sys.stdout)
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def _left(self) -> str:
        """Time left at the speed of this process's own steps."""
        steps = self._done - self._first
        if steps == 0:
            return ""
        seconds = (time.monotonic() - self._begun) / steps * (self._total - self._done)
        return f"{duration(seconds)} left"


def duration(seconds: float) -> str:
    """3725 -> ``1h02m``, 65 -> ``1m05s``, 5 -> ``5s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def _words(values: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in values.items()]
