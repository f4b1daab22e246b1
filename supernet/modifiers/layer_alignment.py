"""Aligning the gradients of the cells that share alpha."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from supernet.errors import UserError
from supernet.interfaces import GradientModifier, SearchSpace, Setting, State, StepContext
from supernet.schema.modifiers import LayerAlignmentConfig
from supernet.spaces.cell import plainly
from supernet.types import Mixing
from supernet.updates import gradient_of_p, quiet


class LayerAlignment(GradientModifier):
    """Lambda-DARTS (arXiv:2210.07998), section 4: the weights descend L_train(w, p) - lambda * Lambda(w, p), where
    Lambda is the :func:`alignment` of the gradients of L_train with respect to the p of each cell.

    lambda grows linearly over the search to ``weight``. Aligned are the cells of the kind that has most of them: in
    DARTS the normal cells, as in the published code; or those of every kind. As there, gradients are taken with respect
    to p and not to alpha.

    The published finite difference is an option and not the default: its step crosses kinks of ReLUs and max-pools,
    whose jumps, divided by the step, were 20 to 70 times the derivative itself in every network measured
    (docs/methods/lambda_darts.md).
    """

    def __init__(self, config: LayerAlignmentConfig) -> None:
        self.config = config
        self.placements: dict[str, int] = {}
        self.device = torch.device("cpu")
        self.total: Tensor | None = None
        self.steps, self.epoch = 0, -1

    def bind(self, setting: Setting) -> None:
        self.device = setting.device
        self.begin_stage(setting.space)

    def begin_stage(self, space: SearchSpace) -> None:
        shared = {group.name: group.placements for group in space.groups if group.placements > 1}
        if not shared:
            raise UserError(
                "modifier=layer_alignment aligns cells of one kind, and no kind has two: choose a larger search.cells"
            )
        most = max(shared, key=shared.__getitem__)
        self.placements = shared if self.config.groups == "all" else {most: shared[most]}

    def edit_gradients(self, net: nn.Module, ctx: StepContext) -> None:
        moment = ctx.moment("weights")
        if self.config.derivative == "exact":
            value, pull_W = alignment_gradient(ctx, self.placements)
        else:
            value, pull_W = alignment_difference(ctx, self.placements, self.config.epsilon)
        if moment.epoch != self.epoch:
            self.total, self.steps, self.epoch = None, 0, moment.epoch
        self.total = value if self.total is None else self.total + value
        self.steps += 1
        strength = self.config.weight * moment.progress
        for weight, pull in zip(ctx.weights, pull_W, strict=True):
            if weight.grad is not None and pull is not None:
                weight.grad.sub_(pull, alpha=strength)

    def figures(self) -> dict[str, float]:
        """The mean over the steps of the epoch."""
        return {} if self.total is None else {"layer_alignment": float(self.total) / self.steps}

    def state_dict(self) -> State:
        return {"total": self.total, "steps": self.steps, "epoch": self.epoch}

    def load_state_dict(self, state: State, /) -> None:
        total = state["total"]
        self.total = None if total is None else total.to(self.device)
        self.steps, self.epoch = state["steps"], state["epoch"]


def alignment(gradient_LNK: Tensor) -> tuple[Tensor, Tensor]:
    """Lambda-DARTS (arXiv:2210.07998), section 4: Lambda = 2 / (L (L - 1)) * sum over pairs of cells of
    cos(g_l, g_l'), where g_l = ``gradient_LNK[l]``, flat. Returns it, and its derivative with respect to every g_l:
    2 / (L (L - 1)) * (I - u_l u_l^T) / |g_l| * sum over l' of u_l', where u_l = g_l / |g_l|.
    """
    cells = gradient_LNK.shape[0]
    pairs = cells * (cells - 1) / 2
    flat_LD = gradient_LNK.flatten(1)
    length_L1 = flat_LD.norm(dim=1, keepdim=True).clamp_min(torch.finfo(flat_LD.dtype).tiny)
    unit_LD = flat_LD / length_L1
    sum_D = unit_LD.sum(dim=0)
    value = (sum_D @ sum_D - unit_LD.square().sum()) / (2 * pairs)
    across_LD = sum_D - unit_LD * (unit_LD @ sum_D)[:, None]
    return value, (across_LD / length_L1 / pairs).view_as(gradient_LNK)


Pull = tuple[Tensor, list[Tensor | None]]
"""Lambda, summed over groups, and its gradient by every weight; None where no operation uses it."""


def alignment_gradient(ctx: StepContext, placements: dict[str, int]) -> Pull:
    """Lambda-DARTS (arXiv:2210.07998), section 4: dLambda / dw = sum over cells of d_l dg_l / dw, where d_l = dLambda /
    dg_l, exactly: by a second backward pass through the gradients g_l, with the plain modules.
    """
    p = expanded(ctx.mixing("weights").detach(), placements)
    leaf = p.leaf()
    with plainly(ctx.net), quiet(ctx.net):
        loss = ctx.run("weights", leaf).loss
        cells = [leaf[name].op_LNK for name in placements]
        layers = torch.autograd.grad(loss, cells, create_graph=True, allow_unused=True, materialize_grads=True)
        seen = [layer.detach().clone() for layer in layers]
        ctx.sync_grads(seen)  # every process takes the same direction
        aligned = [alignment(layer) for layer in seen]
        pull_W: list[Tensor | None] = list(
            torch.autograd.grad(layers, list(ctx.weights), [direction for _, direction in aligned], allow_unused=True)
        )
    ctx.sync_grads([pull for pull in pull_W if pull is not None])
    return torch.stack([value for value, _ in aligned]).sum(), pull_W


def alignment_difference(ctx: StepContext, placements: dict[str, int], epsilon: float) -> Pull:
    """Lambda-DARTS (arXiv:2210.07998), section 4: dLambda / dw by the central difference of dL_train / dw between
    p_l + e d_l and p_l - e d_l, with d_l = dLambda / dg_l and e = ``epsilon`` / |d|, as published.
    """
    p = expanded(ctx.mixing("weights").detach(), placements)
    _, gradients = gradient_of_p(ctx, "weights", p.leaf())
    ctx.sync_grads(gradients)
    by_group = p.with_tensors(gradients)
    aligned = {name: alignment(by_group[name].op_LNK) for name in placements}
    norm = torch.nn.utils.get_total_norm([direction for _, direction in aligned.values()])
    scale = epsilon / norm.clamp_min(torch.finfo(norm.dtype).tiny)

    def gradient_at(sign: float) -> list[Tensor | None]:
        moved = {
            name: replace(group, op_LNK=group.op_LNK + sign * scale * aligned[name][1]) if name in aligned else group
            for name, group in p.items()
        }
        with quiet(ctx.net):
            loss = ctx.run("weights", Mixing(moved)).loss
            return list(torch.autograd.grad(loss, list(ctx.weights), allow_unused=True))

    ahead, behind = gradient_at(1.0), gradient_at(-1.0)
    pull_W = [None if a is None or b is None else (a - b) / (2 * scale) for a, b in zip(ahead, behind, strict=True)]
    ctx.sync_grads([pull for pull in pull_W if pull is not None])
    return torch.stack([value for value, _ in aligned.values()]).sum(), pull_W


def expanded(p: Mixing, placements: dict[str, int]) -> Mixing:
    """p with the op weights of each cell apart, so that each cell has its own gradient."""
    return Mixing(
        {
            name: replace(group, op_LNK=group.op_LNK.expand(placements[name], -1, -1).clone())
            if name in placements
            else group
            for name, group in p.items()
        }
    )
