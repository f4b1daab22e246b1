"""Stages that drop candidates and let more channels through those that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from supernet.errors import UserError
from supernet.interfaces import SearchSpace, Setting, StageModifier
from supernet.schema.modifiers import PruneWidenConfig
from supernet.stages import strongest
from supernet.types import Group, Mask, Mixing


class PruneWiden(StageModifier):
    """DrNAS (arXiv:2006.10355), section 2.4: progressive learning. The search begins with one of K channels computed
    (``partial_channels``); in each later stage every edge keeps the ``keep`` operations with the largest mean p, and K
    falls to ``partial``, at about the same memory.

    The network goes on: weights and momentum are widened (:func:`supernet.stages.carry_over`), alpha and its optimiser
    stay, and one learning-rate schedule spans all stages, as in the published code.
    """

    def __init__(self, config: PruneWidenConfig) -> None:
        self.config = config
        if not config.keep or len(config.keep) != len(config.partial):
            raise UserError(
                f"modifier.prune_widen: keep={config.keep} and partial={config.partial} must have one entry for each "
                "stage after the first"
            )

    def bind(self, setting: Setting) -> None:
        space: Any = setting.space
        first = space.partial
        falling = (first, *self.config.partial)
        if any(a <= b for a, b in pairwise(falling)):
            raise UserError(
                f"modifier.prune_widen.partial={self.config.partial}: it must fall from stage to stage, from below the "
                f"{first} of partial_channels on"
            )
        for stage in range(1, 1 + len(self.config.partial)):
            self.stage_space(setting.space, stage)  # refuses now the channels that cannot be divided

    @property
    def starts(self) -> tuple[float, ...]:
        stages = 1 + len(self.config.keep)
        return tuple(i / stages for i in range(1, stages))

    def stage_space(self, space: SearchSpace, stage: int) -> SearchSpace:
        description: Any = space  # a dataclass with the field that partial_channels sets
        edited: SearchSpace = replace(description, partial=self.config.partial[stage - 1]) if stage else space
        return edited

    def stage_masks(self, p: Mixing, groups: Mapping[str, Group], stage: int) -> dict[str, Mask]:
        return {name: strongest(p[name], group, self.config.keep[stage - 1]) for name, group in groups.items()}
