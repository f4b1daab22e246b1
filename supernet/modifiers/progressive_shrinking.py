"""Stages that shrink the candidates while the network grows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from supernet.errors import UserError
from supernet.interfaces import SearchSpace, Setting, StageModifier
from supernet.schema.modifiers import ProgressiveShrinkingConfig
from supernet.spaces.darts import DartsSpace
from supernet.stages import strongest
from supernet.types import Group, Mask, Mixing


class ProgressiveShrinking(StageModifier):
    """P-DARTS (arXiv:1904.12760), section 3.2: the search comes closer to the depth of the child, stage by stage, and
    pays for it with fewer operations: every edge keeps the ``keep`` with the largest p into the next stage.

    Published: 5, 11, 17 cells with 8, 5, 3 operations; depths are given as multiples of ``search.cells``, so that
    search.cells=5 is the published search. Weights, their schedule and alpha begin anew with every stage. ``none`` may
    be dropped or kept as any other, and every edge keeps two operations at least, so one that can be derived.
    """

    new_weights = True
    new_alpha = True

    def __init__(self, config: ProgressiveShrinkingConfig) -> None:
        self.config = config
        if not config.keep or len(config.keep) != len(config.depth):
            raise UserError(
                f"modifier.progressive_shrinking: keep={config.keep} and depth={config.depth} must have one entry for "
                "each stage after the first"
            )

    def bind(self, setting: Setting) -> None:
        if not isinstance(setting.space, DartsSpace):
            raise UserError("modifier=progressive_shrinking needs space=darts, whose number of cells it changes")

    @property
    def starts(self) -> tuple[float, ...]:
        stages = 1 + len(self.config.keep)
        return tuple(i / stages for i in range(1, stages))

    def stage_space(self, space: SearchSpace, stage: int) -> SearchSpace:
        assert isinstance(space, DartsSpace)
        return replace(space, search_cells=round(space.search_cells * (1.0, *self.config.depth)[stage]))

    def stage_masks(self, p: Mixing, groups: Mapping[str, Group], stage: int) -> dict[str, Mask]:
        return {name: strongest(p[name], group, self.config.keep[stage - 1]) for name, group in groups.items()}
