"""A second skip connection that fades out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from supernet.errors import UserError
from supernet.interfaces import MixingModifier, PGradient, SearchSpace, Setting, SpaceModifier
from supernet.modifiers.described import edited
from supernet.schema.modifiers import AuxiliarySkipConfig
from supernet.spaces.ops import build_skip, register_operation
from supernet.types import GroupMixing, Mixing, Moment

NAME = "auxiliary_skip"

# The identity, and a factorized reduction with weights of its own where the cell strides, as published.
register_operation(NAME, build_skip)


class AuxiliarySkip(SpaceModifier, MixingModifier):
    """DARTS- (arXiv:2009.01027), section 3.2: o(x) = beta * x + sum over k of p_k o_k(x), beta falling to 0.

    A skip connection helps a network to train whatever the architecture; on every edge beside the candidates, it leaves
    them to be compared for what they are. It is an extra column of p which no relaxation knows and no derivation takes;
    in the phase "derive" it is absent. An edge's own weight scales it like all that the edge gives.
    """

    def __init__(self, config: AuxiliarySkipConfig) -> None:
        self.config = config
        self.columns: dict[str, tuple[list[bool], Tensor]] = {}  # the same on the host and on the device
        self.beta = config.beta

    def edit_space(self, space: SearchSpace) -> SearchSpace:
        description: Any = space
        return edited(space, NAME, extras=(*getattr(description, "extras", ()), NAME))

    def bind(self, setting: Setting) -> None:
        for group in setting.space.groups:
            column = [name == NAME for name in group.options]
            self.columns[group.name] = column, torch.tensor(column, device=setting.device)

    def edit_mixing(
        self, p: Mixing, moment: Moment, *, generator: torch.Generator, gradient: PGradient | None
    ) -> Mixing:
        self.beta = decayed(moment.progress, self.config.beta, self.config.decay)
        if moment.phase == "derive" or self.beta == 0.0:
            return p
        return Mixing({name: self._beside(group, *self.columns[name]) for name, group in p.items()})

    def _beside(self, group: GroupMixing, column: list[bool], column_K: Tensor) -> GroupMixing:
        if group.active_LN is not None:
            raise UserError(
                f"modifier={NAME}: the relaxation evaluates one operation an edge, and the auxiliary skip would be a "
                "second; choose another relaxation"
            )
        mask_NK = tuple(tuple(a or b for a, b in zip(row, column, strict=True)) for row in group.mask_NK)
        return replace(group, op_LNK=torch.where(column_K, self.beta, group.op_LNK), mask_NK=mask_NK)

    def figures(self) -> dict[str, float]:
        """beta."""
        return {NAME: self.beta}


def decayed(progress: float, beta: float, decay: str) -> float:
    """DARTS- (arXiv:2009.01027), section 3.2: beta of the auxiliary skip, from ``beta`` to 0 over the search; t is
    ``progress``: beta * (1 - t), or beta * (1 + cos(pi t)) / 2.

    The published code sets it once an epoch, here every step.
    """
    share = (1.0 + math.cos(math.pi * progress)) / 2 if decay == "cosine" else 1.0 - progress
    return beta * share
