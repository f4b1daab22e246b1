"""Signals as requests that loops poll, so that a run ends between two steps with a checkpoint written."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

ALWAYS = (signal.SIGINT, signal.SIGTERM)
UNCLAIMED = (signal.SIGHUP, signal.SIGUSR1)
"""A lost terminal, and the warning that SLURM sends where it is asked to (``--signal=USR1@120``). They are left to
whoever has said before what they mean: ``nohup``, or the launcher that a job runs under."""

_PATIENCE = 2  # the SIGINT after this many does not wait for the next step any more


class Interrupted(Exception):
    """The run ended because somebody asked; ``exit_code`` is the shell's 128 + signal."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"interrupted by {number.name}")
        self.signal = number
        self.exit_code = 128 + number


class Interrupt:
    """Within this context, SIGINT, SIGTERM, SIGHUP and SIGUSR1 set ``requested`` and nothing else; the third SIGINT
    gives up waiting, but for a checkpoint that is being written.

    Handlers belong to the main thread: in another one (a notebook's executor) the context does nothing.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._interrupts = 0
        self._saving = False
        self._previous: dict[signal.Signals, signal._HANDLER] = {}
        self._process = os.getpid()

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            unclaimed = [number for number in UNCLAIMED if signal.getsignal(number) is signal.SIG_DFL]
            for number in (*ALWAYS, *unclaimed):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python and cannot be put back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def check(self) -> None:
        """Raise Interrupted if somebody asked. To be called where the run may end: after the checkpoint."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Within this context nothing interrupts: what is being saved here is what the run will go on from."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked helper inherits this handler, polls nothing, and would never end when its pool is terminated.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        # No output here: the signal may have come in the middle of a print.
        self.requested = self.requested or signal.Signals(number)
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > _PATIENCE and not self._saving:
                raise KeyboardInterrupt
