"""Backward passes that have no derivative of their own, and say so.

torch has ``once_differentiable``, which raises in ``backward()``; but ``torch.autograd.grad(g, x)`` finds no way from g
back to x through it, and leaves that part out without a word.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., tuple[Any, ...]]


def once(backward: Backward) -> Backward:
    """For ``backward(ctx, saved, *gradients)``, ``saved`` being the saved tensors, which may be read once only: where a
    graph of it is made, whoever goes back through that gets an error."""

    @functools.wraps(backward)
    def checked(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        with torch.no_grad():
            found = backward(ctx, saved, *gradients)
        if not torch.is_grad_enabled():  # nobody asked for a graph
            return found
        of = [t for t in (*gradients, *saved) if t is not None and t.requires_grad]
        tensors = [t for t in found if t is not None]
        marked = iter(_Refused.apply(len(tensors), *tensors, *of))
        return tuple(None if t is None else next(marked) for t in found)

    return checked


class _Refused(torch.autograd.Function):
    """Gradients as they are, with a way back to all that they come from, which raises."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.clone() for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(
            "the fast engines have first derivatives only (once_differentiable): evaluate plainly, "
            "see supernet.spaces.cell.plainly, or choose engine=plain"
        )
