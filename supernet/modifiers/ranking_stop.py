"""Stopping when the ranking of operations has settled."""

from __future__ import annotations

import torch
from torch import Tensor

from supernet.errors import UserError
from supernet.interfaces import EpochEnd, SearchSpace, Setting, State, Stop, StopModifier
from supernet.schema.modifiers import RankingStopConfig
from supernet.spaces.cell_facts import learns
from supernet.types import Group, GroupMixing

Ranking = list[list[str]]
"""For every decision, its learnable operations from the strongest to the weakest."""


class RankingStop(StopModifier):
    """DARTS+ (arXiv:1909.06035), criterion 2: stop when the ranking of alpha of the learnable operations has not
    changed for ``epochs`` epochs.

    An operation is learnable if it has weights, so skip-connects, pools and ``none`` are left out. The order of p on
    each decision is compared, which is that of alpha where p grows with it; all decisions must keep theirs. Epochs in
    which alpha did not move (a warm-up) say nothing and do not count.
    """

    def __init__(self, config: RankingStopConfig) -> None:
        self.epochs = config.epochs
        self.learnable: set[str] = set()
        self.groups: dict[str, Group] = {}
        self.ranking: dict[str, Ranking] = {}
        self.alphas: dict[str, Tensor] = {}
        self.since, self.now = 0, -1

    def bind(self, setting: Setting) -> None:
        self.groups = {group.name: group for group in setting.space.groups}
        options = {name for group in setting.space.groups for name in group.options}
        self.learnable = {name for name in options if learns(name)}
        if len(self.learnable) < 2:
            raise UserError(
                f"modifier=ranking_stop ranks operations that have weights, and this space has {len(self.learnable)} "
                "of them: leave it out, or add such operations to space.operations",
            )

    def begin_stage(self, space: SearchSpace) -> None:
        self.ranking = {}

    def should_stop(self, end: EpochEnd) -> Stop | None:
        if end.epoch == self.now:
            return self._settled()  # the end of an epoch may be repeated
        ranking = {name: rank(p, self.groups[name], self.learnable) for name, p in end.p.items()}
        alphas = {name: alpha.detach().cpu().clone() for name, alpha in end.alphas.items()}
        still = self.alphas.keys() == alphas.keys() and all(torch.equal(a, self.alphas[k]) for k, a in alphas.items())
        if still or ranking != self.ranking:
            self.since = end.epoch
        self.ranking, self.alphas, self.now = ranking, alphas, end.epoch
        return self._settled()

    def _settled(self) -> Stop | None:
        unchanged = self.now - self.since
        if unchanged < self.epochs:
            return None
        return Stop(f"the ranking of learnable operations has not changed for {unchanged} epochs")

    def figures(self) -> dict[str, float]:
        return {"ranking_unchanged": float(self.now - self.since)}

    def state_dict(self) -> State:
        return {"ranking": self.ranking, "alphas": self.alphas, "since": self.since, "now": self.now}

    def load_state_dict(self, state: State, /) -> None:
        self.ranking, self.alphas = state["ranking"], state["alphas"]
        self.since, self.now = state["since"], state["now"]


def rank(p: GroupMixing, group: Group, learnable: set[str]) -> Ranking:
    """The learnable operations that exist, by p averaged over placements; equals stand as in ``options``."""
    rows_NK = p.op_LNK.mean(dim=0).tolist()
    ranking = []
    for row, mask in zip(rows_NK, p.mask_NK, strict=True):
        here = [k for k, exists in enumerate(mask) if exists and group.options[k] in learnable]
        ranking.append([group.options[k] for k in sorted(here, key=lambda k: -row[k])])
    return ranking
