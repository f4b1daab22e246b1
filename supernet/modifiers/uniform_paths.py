"""Single-path one-shot: weights are trained on one subgraph a step."""

from __future__ import annotations

from dataclasses import replace

import torch

from supernet.decisions import Decisions
from supernet.interfaces import MixingModifier, PGradient, SearchSpace, Setting
from supernet.runtime.random import generator
from supernet.schema.modifiers import UniformPathsConfig
from supernet.types import Mixing, Moment


class UniformPaths(MixingModifier):
    """SPOS (arXiv:1904.00420), eq. 7: each weight step trains one subgraph, drawn uniformly; a step costs one path.

    Subgraphs are drawn on the host, so that nothing waits for the device. Where p is evaluated or derived from, one
    subgraph stands for the supernet, always the same one, so that epochs compare; a derivation that judges subgraphs
    (derive=evolution and others) chooses by itself.
    """

    def __init__(self, config: UniformPathsConfig) -> None:
        pass

    def bind(self, setting: Setting) -> None:
        self.device, self.seed = setting.device, setting.seed
        self.begin_stage(setting.space)

    def begin_stage(self, space: SearchSpace) -> None:
        self.decisions = Decisions(space)
        self.standing = self.decisions.random(generator(self.seed, "uniform_paths/standing"))

    def edit_mixing(
        self, p: Mixing, moment: Moment, *, generator: torch.Generator, gradient: PGradient | None
    ) -> Mixing:
        if moment.phase == "alpha":
            return p
        host = generator if generator.device.type == "cpu" else torch.Generator().manual_seed(generator.initial_seed())
        values = self.decisions.random(host) if moment.phase == "weights" else self.standing
        path = self.decisions.mixing(values, self.device)
        # What else p says (dropout, drop path) stays.
        return Mixing({n: replace(g, op_LNK=path[n].op_LNK, mask_NK=path[n].mask_NK) for n, g in p.items()})
