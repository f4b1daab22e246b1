"""p while an architecture is decided step by step: what is decided is one-hot or gone, the rest as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from supernet.interfaces import MixingModifier, PGradient, State
from supernet.types import Group, GroupMixing, Mask, Mixing, Moment


class Projection(MixingModifier):
    """Makes p discrete, decision by decision. It comes after all modifiers of the search, so a decided p is exact.

    ``chosen[group][n]`` is the option of decision n; ``dropped[group]`` are decisions that the genotype leaves out.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.chosen: dict[str, dict[int, int]] = {group.name: {} for group in groups}
        self.dropped: dict[str, set[int]] = {group.name: set() for group in groups}
        self._constants: dict[str, tuple[Tensor, Tensor]] = {}

    def choose(self, group: str, n: int, k: int) -> None:
        """Decision n is option k from now on."""
        self.chosen[group][n] = k
        self._constants.pop(group, None)

    def drop(self, group: str, n: int) -> None:
        """Decision n is none of the genotype's."""
        self.dropped[group].add(n)
        self._constants.pop(group, None)

    def edit_mixing(
        self, p: Mixing, moment: Moment, *, generator: torch.Generator, gradient: PGradient | None
    ) -> Mixing:
        return Mixing({name: self._projected(name, group) for name, group in p.items()})

    def _projected(self, name: str, p: GroupMixing) -> GroupMixing:
        chosen, dropped = self.chosen[name], self.dropped[name]
        if not chosen and not dropped:
            return p
        if name not in self._constants:  # made once a decision, so that no step copies to the device
            self._constants[name] = _constants(p.op_LNK, chosen)
        free_N1, chosen_NK = self._constants[name]
        options = range(p.op_LNK.shape[-1])
        mask_NK = tuple(
            tuple(k == chosen[n] for k in options) if n in chosen else row for n, row in enumerate(p.mask_NK)
        )
        active_LN = p.active_LN and tuple(tuple(chosen.get(n, k) for n, k in enumerate(row)) for row in p.active_LN)
        p = replace(p, op_LNK=p.op_LNK * free_N1 + chosen_NK, mask_NK=mask_NK, active_LN=active_LN)
        for n in sorted(dropped):
            p = without_decision(p, n)
        return p

    def state_dict(self) -> State:
        return {
            "chosen": {name: [[n, k] for n, k in chosen.items()] for name, chosen in self.chosen.items()},
            "dropped": {name: sorted(dropped) for name, dropped in self.dropped.items()},
        }

    def load_state_dict(self, state: State, /) -> None:
        self.chosen = {name: {n: k for n, k in pairs} for name, pairs in state["chosen"].items()}
        self.dropped = {name: set(dropped) for name, dropped in state["dropped"].items()}
        self._constants.clear()


def _constants(like_LNK: Tensor, chosen: Mapping[int, int]) -> tuple[Tensor, Tensor]:
    """1 for the decisions that are still free, ``free_N1``, and the one-hot rows of the others, ``chosen_NK``."""
    _, decisions, options = like_LNK.shape
    rows_NK = [[float(chosen.get(n) == k) for k in range(options)] for n in range(decisions)]
    free_N1 = [[float(n not in chosen)] for n in range(decisions)]
    return like_LNK.new_tensor(free_N1), like_LNK.new_tensor(rows_NK)


def without_option(p: GroupMixing, n: int, k: int) -> GroupMixing:
    """p with option k of decision n taken away and the others as they are: their weights no longer sum to one."""
    return replace(p, op_LNK=_zeroed(p.op_LNK, (slice(None), n, k)), mask_NK=_without(p.mask_NK, n, {k}))


def without_decision(p: GroupMixing, n: int) -> GroupMixing:
    """p with decision n taken away, channels that bypass its options included."""
    edge_LN = torch.ones_like(p.op_LNK[:, :, 0]) if p.edge_LN is None else p.edge_LN
    # The mask of an active option stays, since there is no way to name none; its weight is zero.
    gone = set() if p.active_LN is not None else set(range(p.op_LNK.shape[-1]))
    return replace(
        p,
        op_LNK=_zeroed(p.op_LNK, (slice(None), n)),
        edge_LN=_zeroed(edge_LN, (slice(None), n)),
        mask_NK=_without(p.mask_NK, n, gone),
    )


def _zeroed(values: Tensor, index: tuple[slice | int, ...]) -> Tensor:
    """A copy with zeros there; its graph stays."""
    keep = torch.ones_like(values)
    keep[index] = 0.0
    return values * keep


def _without(mask_NK: Mask, n: int, gone: set[int]) -> Mask:
    row = tuple(here and k not in gone for k, here in enumerate(mask_NK[n]))
    return (*mask_NK[:n], row, *mask_NK[n + 1 :])
