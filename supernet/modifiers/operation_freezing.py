"""Stopping the training of single operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.errors import UserError
from supernet.interfaces import GradientModifier, SearchSpace, State, StepContext
from supernet.schema.modifiers import OperationFreezingConfig
from supernet.spaces.cell import MixedOp
from supernet.updates import quiet

SKIP = "skip_connect"


@dataclass(frozen=True)
class Candidate:
    """An operation with weights on one edge of one cell, by its path in the network."""

    path: str
    weights: list[nn.Parameter]


class OperationFreezing(GradientModifier):
    """OLES (openreview:yAOwkf4FyL), algorithm 1: an operation whose mean gradient matching over
    ``window`` steps is below ``threshold`` overfits the training data, and is frozen for the rest of the search.

    Windows follow one another. A frozen operation has no gradient, so that neither momentum nor decay moves it. A skip
    connection is not among the operations, also where it strides and therefore has weights, as published. Steps in
    which an operation was not sampled do not count for it. The host waits for the device when a window ends, and not
    between.
    """

    def __init__(self, config: OperationFreezingConfig) -> None:
        self.config = config
        self.net: nn.Module | None = None
        self.candidates: list[Candidate] = []
        self.frozen: set[str] = set()
        self.counts: dict[str, int] = {}  # steps of the present window, by path
        self.sums: dict[str, Tensor] = {}

    def begin_stage(self, space: SearchSpace) -> None:
        self.net, self.frozen, self.counts, self.sums = None, set(), {}, {}

    def edit_gradients(self, net: nn.Module, ctx: StepContext) -> None:
        if net is not self.net:
            self.net, self.candidates = net, candidates_of(net)
        watched = [c for c in self.candidates if c.path not in self.frozen]
        self._note(*scores(ctx, watched, MEASURES[self.config.measure]))
        for candidate in self.candidates:
            if candidate.path in self.frozen:
                for weight in candidate.weights:
                    weight.grad = None

    def _note(self, sampled: Sequence[str], score_M: Tensor) -> None:
        """Add the scores of the sampled operations, and decide about those whose window is full."""
        for path, score in zip(sampled, score_M.unbind(), strict=True):
            self.sums[path] = self.sums[path].to(score.device) + score if path in self.sums else score.clone()
            self.counts[path] = self.counts.get(path, 0) + 1
        full = [path for path, count in self.counts.items() if count == self.config.window]
        if not full:
            return
        means = (torch.stack([self.sums.pop(path) for path in full]) / self.config.window).tolist()
        self.frozen |= {path for path, mean in zip(full, means, strict=True) if mean < self.config.threshold}
        for path in full:
            del self.counts[path]

    def figures(self) -> dict[str, float]:
        return {"frozen_operations": float(len(self.frozen))}

    def state_dict(self) -> State:
        return {"frozen": sorted(self.frozen), "counts": dict(self.counts), "sums": dict(self.sums)}

    def load_state_dict(self, state: State, /) -> None:
        self.frozen, self.counts, self.sums = set(state["frozen"]), dict(state["counts"]), dict(state["sums"])


def candidates_of(net: nn.Module) -> list[Candidate]:
    """The operations that can be frozen: the weights of every option of every mixed edge, but of skip connections."""
    found = []
    for path, module in net.named_modules():
        if isinstance(module, MixedOp):
            for k, (option, operation) in enumerate(zip(module.options, module.ops, strict=True)):
                weights = list(operation.parameters())
                if weights and option != SKIP:
                    found.append(Candidate(f"{path}.ops.{k}", weights))
    if not found:
        raise UserError("modifier=operation_freezing: no operation of this space has weights; leave it out")
    return found


def scores(ctx: StepContext, candidates: Sequence[Candidate], measure: Measure) -> tuple[list[str], Tensor]:
    """The score of every operation that both phases of the step sampled: its path, and how well the gradient of its
    weights agrees with that on the validation batch. It costs one more pass; in the published code alpha's own pass
    gives that gradient for nothing, at weights one step older than the training gradient's.
    """
    here = [c for c in candidates if all(w.grad is not None for w in c.weights)]
    weights = [weight for candidate in here for weight in candidate.weights]
    if not weights:
        return [], torch.empty(0)
    with quiet(ctx.net):
        loss = ctx.run("alpha", ctx.mixing("alpha").detach()).loss
        grads = torch.autograd.grad(loss, weights, allow_unused=True)
    ctx.sync_grads([grad for grad in grads if grad is not None])
    rest = iter(grads)
    pairs = []
    for candidate in here:
        both = [(weight.grad, next(rest)) for weight in candidate.weights]
        whole = [(train, valid) for train, valid in both if train is not None and valid is not None]
        if len(whole) == len(both):
            pairs.append((candidate.path, [t for t, _ in whole], [v for _, v in whole]))
    if not pairs:
        return [], torch.empty(0)
    return [path for path, _, _ in pairs], measure([t for _, t, _ in pairs], [v for _, _, v in pairs])


Measure = Callable[[Sequence[list[Tensor]], Sequence[list[Tensor]]], Tensor]
"""``measure(train, valid)``: gradients of M operations, each a list of tensors, to M scores."""


def matching(train: Sequence[list[Tensor]], valid: Sequence[list[Tensor]]) -> Tensor:
    """OLES (openreview:yAOwkf4FyL), gradient matching GM: cos(g_train, g_val), where g is the gradient of
    all weights of one operation; one number for every operation."""
    flat = torch.stack([torch.cat([g.reshape(-1) for op in side for g in op]) for side in (train, valid)])
    train_W, valid_W = flat.unbind()
    products = torch.stack([train_W * valid_W, train_W.square(), valid_W.square()])
    sums_M3 = torch.stack([part.sum(dim=1) for part in products.split([_count(op) for op in train], dim=1)])
    dot_M, train_M, valid_M = sums_M3.unbind(dim=1)
    return dot_M / (train_M * valid_M).sqrt().clamp_min(torch.finfo(dot_M.dtype).tiny)


def published_matching(train: Sequence[list[Tensor]], valid: Sequence[list[Tensor]]) -> Tensor:
    """OLES (openreview:yAOwkf4FyL), gradient matching GM as the published code computes it: the
    validation gradient is added to the training gradient that still stands there, so that two gradients without
    anything in common score 0.7 and not 0; and each weight tensor is compared along its first dimension, and averaged.
    """
    return torch.stack(
        [
            torch.stack([F.cosine_similarity(t, t + v, dim=0).mean() for t, v in zip(ts, vs, strict=True)]).mean()
            for ts, vs in zip(train, valid, strict=True)
        ]
    )


MEASURES: dict[str, Measure] = {"paper": matching, "code": published_matching}


def _count(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() for t in tensors)
