"""Stopping by the number of skip connections."""

from __future__ import annotations

from supernet.errors import UserError
from supernet.interfaces import EpochEnd, Setting, Stop, StopModifier
from supernet.schema.modifiers import SkipStopConfig

SKIP = "skip_connect"


class SkipStop(StopModifier):
    """DARTS+ (arXiv:1909.06035), criterion 1: stop when there are two or more skip-connects in one normal cell.

    It looks at the derived cell after every epoch. The search does not go back: the result has the ``limit``.
    """

    def __init__(self, config: SkipStopConfig) -> None:
        self.limit, self.cell = config.limit, config.cell

    def bind(self, setting: Setting) -> None:
        names = [group.name for group in setting.space.groups]
        if len(names) == 1:
            self.cell = names[0]  # a space with one kind of cell leaves no choice
        if self.cell not in names:
            raise UserError(f"modifier.skip_stop.cell={self.cell}: the space has no such cell", valid=names)

    def should_stop(self, end: EpochEnd) -> Stop | None:
        skips = sum(operation == SKIP for operation, _ in end.genotype.cells[self.cell].edges)
        if skips < self.limit:
            return None
        return Stop(f"the {self.cell} cell has {skips} skip connections, of {self.limit} that stop a search")
