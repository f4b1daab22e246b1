"""Update rules of alpha, and what they share: the chain rule back to alpha, the optimiser of alpha, quiet passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from supernet.interfaces import State, StepContext
from supernet.runtime.microbatches import KeepBuffers
from supernet.schema import AlphaConfig
from supernet.schema.updates import FirstOrderConfig
from supernet.types import Mixing, Phase


def pull_back(p: Mixing, p_grads: Sequence[Tensor | None], architecture: Sequence[nn.Parameter]) -> list[Tensor]:
    """Chain rule from p to the architecture parameters: dL/dalpha = sum over entries of dL/dp * dp/dalpha.

    Entries of p without a graph (a sample that does not depend on alpha) contribute nothing.
    """
    pairs = [(t, g) for t, g in zip(p.tensors(), p_grads, strict=True) if g is not None and t.requires_grad]
    if not pairs:
        return [torch.zeros_like(a) for a in architecture]
    tensors, grads = zip(*pairs, strict=True)
    pulled = torch.autograd.grad(tensors, architecture, grads, allow_unused=True)
    return [torch.zeros_like(a) if g is None else g for g, a in zip(pulled, architecture, strict=True)]


def gradient_of_p(ctx: StepContext, phase: Phase, leaf: Mixing) -> tuple[Tensor, list[Tensor]]:
    """Loss of a phase at p = ``leaf``, and its gradient with respect to p; no gradient of the weights is computed."""
    with quiet(ctx.net, ctx.weights):
        loss = ctx.run(phase, leaf).loss
        if not loss.requires_grad:  # a sampled p that leads nothing on: every edge into the output drew ``none``
            return loss, [torch.zeros_like(t) for t in leaf.tensors()]
        grads = torch.autograd.grad(loss, leaf.tensors(), allow_unused=True, materialize_grads=True)
    return loss.detach(), list(grads)


@contextmanager
def quiet(net: nn.Module, weights: Sequence[nn.Parameter] = ()) -> Iterator[None]:
    """A pass that leaves no trace in the network.

    Buffers are put back: running batch-norm statistics come from weight steps only, never from architecture batches or
    virtual weights (the published code updates them up to four times a step). ``weights`` need no gradient meanwhile,
    so none is computed for them and nothing is kept for it.
    """
    for weight in weights:
        weight.requires_grad_(False)
    try:
        with KeepBuffers(net):
            yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


class AlphaOptimizer:
    """Adam on the architecture parameters, as published: betas (0.5, 0.999), weight decay added to the gradient."""

    def __init__(self, config: FirstOrderConfig, alpha: AlphaConfig, architecture: Sequence[nn.Parameter]) -> None:
        self.architecture = list(architecture)
        self.lr = alpha.lr * config.lr_factor
        beta1, beta2 = config.betas
        self.adam = torch.optim.Adam(
            self.architecture,
            lr=self.lr,
            betas=(beta1, beta2),
            weight_decay=config.weight_decay,
        )

    def apply(self, grads: Sequence[Tensor], ctx: StepContext) -> dict[str, Tensor]:
        """Add the loss terms on alpha, synchronise across ranks, step. Returns the norm of the gradient.

        A gradient that is not finite is zeroed by the guard, since it would stay in Adam's state for ever; the loop
        then stops or goes back.
        """
        term = ctx.alpha_term()
        if term is not None:
            extra = torch.autograd.grad(term, self.architecture, allow_unused=True, materialize_grads=True)
            grads = [g + e for g, e in zip(grads, extra, strict=True)]
        ctx.sync_grads(grads)
        norm = torch.nn.utils.get_total_norm(list(grads))
        ctx.guard(grads)
        for parameter, grad in zip(self.architecture, grads, strict=True):
            parameter.grad = grad
        for group in self.adam.param_groups:
            group["lr"] = self.lr * ctx.rate
        self.adam.step()
        self.adam.zero_grad()
        return {"alpha_grad_norm": norm}

    def state_dict(self) -> State:
        return self.adam.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.adam.load_state_dict(state)
