"""The left half of the arrow: alpha -> relaxation -> p -> mixing modifiers -> p'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from supernet.interfaces import MixingModifier, Modifier, PGradient, Relaxation, State
from supernet.runtime.random import generator
from supernet.types import Group, Mask, Mixing, Moment


class Mixer(nn.Module):
    """Alpha, and how it becomes p'. The only place where architecture parameters live; no network refers to it.

    ``alpha_LNK`` of every group is a parameter of this module, so it is in the checkpoint and never among the weights.
    Noise is keyed by (seed, phase, step): asking twice for the p of a phase gives the same draw, so all passes of an
    unrolled step see one p.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        relaxation: Relaxation,
        modifiers: Sequence[Modifier],
        *,
        seed: int,
        init_std: float,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.groups = {group.name: group for group in groups}
        self.relaxation = relaxation
        self.modifiers = [m for m in modifiers if isinstance(m, MixingModifier)]
        self.seed, self.init_std = seed, init_std
        first = self._draw(generator(seed, "alpha"))
        self.alphas = nn.ParameterDict({name: nn.Parameter(alpha.to(device)) for name, alpha in first.items()})

    def _draw(self, draw: torch.Generator) -> dict[str, Tensor]:
        return {
            name: self.init_std * torch.randn(1, g.decisions, len(g.options), generator=draw)
            for name, g in self.groups.items()
        }

    def restart(self, stage: int) -> None:
        """Draw alpha anew for a stage."""
        self.set_values(self._draw(generator(self.seed, "alpha", stage)))

    def use_groups(self, groups: Sequence[Group]) -> None:
        """Go on with the groups of another description of the same decisions; masks stay."""
        self.groups = {g.name: replace(g, mask_NK=self.groups[g.name].mask_NK) for g in groups}

    def narrow(self, masks: Mapping[str, Mask]) -> None:
        """Put new masks in place; what is not named stays."""
        for name, mask_NK in masks.items():
            self.groups[name] = replace(self.groups[name], mask_NK=mask_NK)

    def sample(self, moment: Moment, *, step: int, gradient: PGradient | None = None) -> Mixing:
        """p' of one phase of one step, with the graph back to alpha."""
        noise = generator(self.seed, f"mixing/{moment.phase}", step, device=self._device)
        p = Mixing(
            {
                name: self.relaxation.sample(
                    self.alphas[name], group.mask_NK, generator=noise, progress=moment.progress
                )
                for name, group in self.groups.items()
            }
        )
        return self._modified(with_active(p) if self.relaxation.sparse else p, moment, step, gradient)

    @torch.no_grad()
    def mean(self, moment: Moment, *, step: int) -> Mixing:
        """The mean of p', without noise or graph: what is evaluated, drawn and derived from."""
        p = Mixing(
            {
                name: self.relaxation.mean(self.alphas[name], group.mask_NK, progress=moment.progress)
                for name, group in self.groups.items()
            }
        )
        return self._modified(p, moment, step, None)

    def _modified(self, p: Mixing, moment: Moment, step: int, gradient: PGradient | None) -> Mixing:
        for index, modifier in enumerate(self.modifiers):
            noise = generator(self.seed, f"modifier/{moment.phase}", step, index, device=self._device)
            p = modifier.edit_mixing(p, moment, generator=noise, gradient=gradient)
        return p

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(iter(self.alphas.values())).device
        return device

    def values(self) -> dict[str, Tensor]:
        """``alpha_LNK`` of every group."""
        return dict(self.alphas.items())

    @torch.no_grad()
    def set_values(self, alphas: dict[str, Tensor]) -> None:
        """Put alpha of the given groups in place."""
        for name, alpha_LNK in alphas.items():
            self.alphas[name].copy_(alpha_LNK)

    def get_extra_state(self) -> State:
        """Masks, which a stage may have narrowed: they are restored with alpha and before weights."""
        return {name: [list(row) for row in group.mask_NK] for name, group in self.groups.items()}

    def set_extra_state(self, state: State) -> None:
        self.narrow(
            {name: tuple(tuple(bool(exists) for exists in row) for row in rows) for name, rows in state.items()}
        )


def with_active(p: Mixing) -> Mixing:
    """A one-hot p that names its options on the host.

    This waits for the device, the only place of a step that does: once for each draw, with one transfer for all groups
    together. The network is launched after it, since what it computes depends on what was drawn.
    """
    drawn = iter(torch.cat([group.op_LNK.detach().argmax(dim=-1).flatten() for group in p.values()]).tolist())
    groups = {}
    for name, group in p.items():
        placements, decisions, _ = group.op_LNK.shape
        active_LN = tuple(tuple(next(drawn) for _ in range(decisions)) for _ in range(placements))
        groups[name] = replace(group, active_LN=active_LN)
    return Mixing(groups)
