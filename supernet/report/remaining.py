"""How long the rest of a phase will take."""

from __future__ import annotations

import statistics
import time
from collections import deque

STEPS, PAUSES = 50, 5
"""How many of the last steps, and of the last pauses between epochs, an estimate goes by: stages change their times."""


class Remaining:
    """Steps left times the time of a step, and epochs left times what passes between two epochs: evaluation, pictures,
    checkpoint, decisions of a derivation. Only this process's own steps count, so a resume does not mislead it.
    Without ``steps_per_epoch`` there are no pauses."""

    def __init__(self, total: int, done: int, steps_per_epoch: int | None = None) -> None:
        self.total, self.done, self._per_epoch = total, done, max(1, steps_per_epoch or total + 1)
        self._steps: deque[float] = deque(maxlen=STEPS)
        self._pauses: deque[float] = deque(maxlen=PAUSES)
        self._first = done
        self._mark = time.monotonic()

    def advance(self) -> None:
        """A step is done."""
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        if self.done > self._first and self.done % self._per_epoch == 0:
            self._pauses.append(max(0.0, seconds - self._step()))
        else:
            self._steps.append(seconds)
        self.done += 1

    def seconds(self) -> float | None:
        """Time left; None before the first step. A lower bound as long as :attr:`bounds`."""
        if not self._steps:
            return None
        # The pause after the last step of an epoch is over, or not, when this is asked: it counts until it has passed.
        epochs = self.total // self._per_epoch - (self.done - 1) // self._per_epoch
        waited = time.monotonic() - self._mark if self.done % self._per_epoch == 0 else 0.0
        pauses = statistics.fmean(self._pauses) if self._pauses else 0.0
        return max(0.0, (self.total - self.done) * self._step() + epochs * pauses - min(waited, pauses))

    @property
    def bounds(self) -> bool:
        """True until a pause between two epochs has been seen: what it takes is not known before."""
        return not self._pauses and self.total >= self._per_epoch

    def _step(self) -> float:
        """The first step of a process warms things up: where there are others, it does not count."""
        steps = list(self._steps)
        return statistics.fmean(steps[1:] if 1 < len(steps) < STEPS else steps)


def duration(seconds: float) -> str:
    """3725 -> ``1h02m``, 65 -> ``1m05s``, 5 -> ``5s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
