"""Second-order DARTS: the gradient through one virtual weight step, by finite differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from supernet.interfaces import State, StepContext, Update
from supernet.schema import AlphaConfig
from supernet.schema.updates import UnrolledConfig
from supernet.types import Mixing
from supernet.updates import AlphaOptimizer, gradient_of_p, pull_back, quiet


class Unrolled(Update):
    """DARTS (arXiv:1806.09055), eq. 7: alpha descends L_val(w', alpha) with w' = w - xi * dL_train(w, alpha)/dw.

    xi is the weights' learning rate. As in the published code the virtual step includes momentum and weight decay, but
    no gradient clipping. p of the weight phase enters L_train, p of the alpha phase L_val; each is drawn once and
    pulled back to alpha once. No second network is built: the weights are moved in place and put back bit for bit.
    """

    def __init__(self, config: UnrolledConfig, *, alpha: AlphaConfig, architecture: Sequence[nn.Parameter]) -> None:
        self.optimizer = AlphaOptimizer(config, alpha, architecture)
        self.epsilon = config.epsilon

    def step(self, ctx: StepContext) -> dict[str, Tensor]:
        loss, grads = hypergradient(ctx, self.epsilon)
        return {"alpha_loss": loss, **self.optimizer.apply(grads, ctx)}

    def state_dict(self) -> State:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: State, /) -> None:
        self.optimizer.load_state_dict(state)


def hypergradient(ctx: StepContext, epsilon: float) -> tuple[Tensor, list[Tensor]]:
    """DARTS (arXiv:1806.09055), eq. 7: dL_val(w', alpha)/dalpha - xi * d2L_train(w, alpha)/dalpha dw * dL_val/dw'.

    Returns L_val(w', alpha) and the gradient of every architecture parameter.
    """
    p_alpha, p_weights = ctx.mixing("alpha"), ctx.mixing("weights")
    leaf_alpha, leaf_weights = p_alpha.leaf(), p_weights.leaf()
    xi, moving, step_W = virtual_step(ctx, p_weights.detach())
    with moved(moving, step_W), quiet(ctx.net):
        loss = ctx.run("alpha", leaf_alpha).loss
        inputs = [*leaf_alpha.tensors(), *ctx.weights]
        grads = list(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))
    count = len(leaf_alpha.tensors())
    direct, vector_W = grads[:count], grads[count:]
    mixed = mixed_product(ctx, leaf_weights, vector_W, epsilon)
    first = pull_back(p_alpha, direct, ctx.architecture)
    second = pull_back(p_weights, mixed, ctx.architecture)
    return loss.detach(), [f - xi * s for f, s in zip(first, second, strict=True)]


def virtual_step(ctx: StepContext, p: Mixing) -> tuple[float, list[Tensor], list[Tensor]]:
    """DARTS (arXiv:1806.09055), eq. 5 to 6: w' = w - xi * dL_train(w, alpha)/dw stands for w*; the step is SGD's own.

    Returns xi, the weights that SGD would move, and by how much: -xi * (momentum * buffer + dL/dw + decay * w).
    Weights of operations that were not sampled have no gradient and stay where they are, as in the real step.
    """
    with quiet(ctx.net):
        loss = ctx.run("weights", p).loss
        grads = torch.autograd.grad(loss, list(ctx.weights), allow_unused=True)
    moving: list[Tensor] = [w for w, g in zip(ctx.weights, grads, strict=True) if g is not None]
    step_W = [g for g in grads if g is not None]
    group, state = ctx.weight_optimizer.param_groups[0], ctx.weight_optimizer.state
    with torch.no_grad():
        torch._foreach_add_(step_W, moving, alpha=group["weight_decay"])
        for step, weight in zip(step_W, moving, strict=True):
            buffer = state[weight].get("momentum_buffer") if weight in state else None
            if buffer is not None:
                step.add_(buffer, alpha=group["momentum"])
        torch._foreach_mul_(step_W, -group["lr"])
    return group["lr"], moving, step_W


def mixed_product(ctx: StepContext, leaf: Mixing, vector_W: list[Tensor], epsilon: float) -> list[Tensor]:
    """DARTS (arXiv:1806.09055), eq. 8, with respect to p: (dL_train(w+, p)/dp - dL_train(w-, p)/dp) / 2R with
    w± = w ± R v and R = epsilon / |v|."""
    scale = epsilon / torch.nn.utils.get_total_norm(vector_W)
    offset_W = torch._foreach_mul(vector_W, scale)
    with moved(ctx.weights, offset_W):
        _, plus = gradient_of_p(ctx, "weights", leaf)
    with moved(ctx.weights, torch._foreach_neg(offset_W)):
        _, minus = gradient_of_p(ctx, "weights", leaf)
    return [(a - b) / (2 * scale) for a, b in zip(plus, minus, strict=True)]


@contextmanager
def moved(weights: Sequence[Tensor], offset_W: Sequence[Tensor]) -> Iterator[None]:
    """Move the weights in place; on leaving they are copied back, bit for bit, since w + d - d would not be w."""
    saved = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        torch._foreach_add_(list(weights), list(offset_W))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(weights), saved)
