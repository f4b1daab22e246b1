"""A term on the entropy of p."""

from __future__ import annotations

import torch
from torch import Tensor

from supernet.interfaces import LossModifier, Setting
from supernet.schema.modifiers import EntropyConfig
from supernet.types import Mixing, Moment


class Entropy(LossModifier):
    """DA2S (arXiv:2007.03154), section 3: the loss of alpha gains weight * H(p), H = -sum over k of p_k log p_k, the
    mean over decisions, so that p ends near one-hot and little is lost when it is made discrete; a negative weight
    keeps choices open.

    ``growth`` is that of the weight over the search: constant, or linear from 0 (the paper finds growing ones better).
    p is the drawn p' of the phase. The paper also has a term on the choice of edges, which here no p stands for.
    """

    def __init__(self, config: EntropyConfig) -> None:
        self.config = config

    def bind(self, setting: Setting) -> None:
        # The share of an extra option is none of the choice.
        self.columns = {
            group.name: [k for k, name in enumerate(group.options) if name not in group.extras]
            for group in setting.space.groups
        }

    def loss_term(self, p: Mixing, alphas: dict[str, Tensor], moment: Moment) -> Tensor | None:
        if moment.phase != "alpha":
            return None
        weight = self.config.weight * (moment.progress if self.config.growth == "linear" else 1.0)
        terms = [entropy(group.op_LNK[..., self.columns[name]]).flatten() for name, group in p.items()]
        return weight * torch.cat(terms).mean()


def entropy(p_LNK: Tensor) -> Tensor:
    """-sum over k of p_k log p_k; an entry of 0 adds nothing, and to the gradient nothing either."""
    summands_LNK: Tensor = torch.special.entr(p_LNK.clamp_min(torch.finfo(p_LNK.dtype).tiny))
    return summands_LNK.sum(dim=-1)
