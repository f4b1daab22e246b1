"""What the two perturbations of p share: how far, what stays a p, and what gradients see of it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from supernet.errors import UserError
from supernet.interfaces import Setting
from supernet.relaxations import mask_tensor, without_extras
from supernet.schema.modifiers import PerturbRandomConfig
from supernet.types import Group, Mixing, Moment


class Perturbed:
    """p of the options that a relaxation knows, by group, as it is moved within a ball and kept a p."""

    def __init__(self, p: Mixing, groups: dict[str, Group], modifier: str) -> None:
        if any(group.active_LN is not None for group in p.values()):
            raise UserError(
                f"modifier={modifier}: the relaxation evaluates one operation an edge, and a perturbed p has all; "
                "choose another relaxation"
            )
        self.p = p
        self.op_LNK = {name: group.op_LNK.detach() for name, group in p.items()}
        self.mask_NK = {
            name: mask_tensor(without_extras(group.mask_NK, groups[name]), group.op_LNK.device)
            for name, group in p.items()
        }

    def noise(self, epsilon: float, generator: torch.Generator) -> dict[str, Tensor]:
        """delta ~ U[-epsilon, epsilon] for every entry."""
        return {
            name: torch.empty_like(op_LNK).uniform_(-epsilon, epsilon, generator=generator)
            for name, op_LNK in self.op_LNK.items()
        }

    def moved(self, delta: dict[str, Tensor]) -> dict[str, Tensor]:
        """p + delta, a p again (:func:`renormalised`)."""
        return {name: renormalised(op + delta[name], op, self.mask_NK[name]) for name, op in self.op_LNK.items()}

    def at(self, op_LNK: dict[str, Tensor]) -> Mixing:
        """p' with these values. To gradients of alpha the perturbation is a constant."""
        return Mixing(
            {
                name: replace(group, op_LNK=op_LNK[name] + (group.op_LNK - self.op_LNK[name]))
                for name, group in self.p.items()
            }
        )


def renormalised(moved_LNK: Tensor, op_LNK: Tensor, mask_NK: Tensor) -> Tensor:
    """Clamp to [0, 1] and divide by the sum over the options of a decision, as the published code of SDARTS
    (arXiv:2002.05283) keeps a perturbed p a p; where nothing is left, its largest entry becomes 1.

    What ``mask_NK`` leaves out keeps the value that it has in ``op_LNK``.
    """
    largest_LN1 = moved_LNK.masked_fill(~mask_NK, float("-inf")).argmax(dim=-1, keepdim=True)
    inside_LNK = moved_LNK.clamp(0.0, 1.0).masked_fill(~mask_NK, 0.0)
    sum_LN1 = inside_LNK.sum(dim=-1, keepdim=True)
    only_LNK = torch.zeros_like(inside_LNK).scatter_(-1, largest_LN1, 1.0)
    normal_LNK = torch.where(sum_LN1 > 0, inside_LNK / sum_LN1.clamp_min(torch.finfo(sum_LN1.dtype).tiny), only_LNK)
    return torch.where(mask_NK, normal_LNK, op_LNK)


def ramp(config: PerturbRandomConfig, moment: Moment) -> float:
    """SDARTS (arXiv:2002.05283): epsilon rises linearly over the search, in the published code from 0.03 to 0.3, where
    it is set once an epoch; here every step.
    """
    return config.epsilon_start + (config.epsilon_end - config.epsilon_start) * moment.progress


def groups_of(setting: Setting) -> dict[str, Group]:
    """The groups of a space by name."""
    return {group.name: group for group in setting.space.groups}
