"""Noticing numbers that are not finite without making the host wait for the device in each step.

:class:`FiniteWatch` keeps the first bad step of each watched value on the device and is read where the host waits
anyway. Meanwhile :meth:`FiniteWatch.guard` keeps a bad gradient away from alpha. Read it, and :func:`check_finite` the
parameters, before each checkpoint and derivation: then nothing after the bad step is ever kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from supernet.errors import UserError

_NAMED = 3


class NonFinite(UserError):
    """A loss, gradient or parameter became NaN or infinite."""


def check_finite(values: Mapping[str, Tensor], where: str) -> None:
    """Raise NonFinite if any of the tensors holds NaN or an infinity; ``where``: "after step 120 of the search".

    Waits for the device once, however many tensors there are.
    """
    if not values:
        return
    flags = [torch.isfinite(t.detach()).all() for t in values.values()]
    finite = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()
    bad = [name for name, good in zip(values, finite, strict=True) if not good]
    if bad:
        raise NonFinite(_sentence(bad, where))


class FiniteWatch:
    """The first step at which each watched value was not finite, kept on the values' device."""

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}  # name -> step as int64 of no dimensions, -1 while all is well

    @torch.no_grad()
    def note(self, step: int, **values: Tensor) -> None:
        """Look at values of this step (``loss=loss, gradient=norm``); the host does not wait."""
        for name, value in values.items():
            self._note(step, name, torch.isfinite(value).all())

    @torch.no_grad()
    def guard(self, step: int, name: str, gradients: Iterable[Tensor]) -> None:
        """Zero all the gradients, in place, if one of them is not finite, and note the step; the host does not wait.

        Comes after the gradients are synchronised, so that all processes see the same and stop together.
        With a zero gradient an optimiser may still move alpha by its momentum and weight decay, by finite amounts,
        until the next :meth:`check` ends the run; these moves are in no checkpoint.
        """
        gradients = list(gradients)
        if not gradients:
            return
        finite = torch.stack([torch.isfinite(g).all() for g in gradients]).all()
        for g in gradients:
            g.copy_(torch.where(finite, g, 0.0))  # not a product: NaN times zero is NaN
        self._note(step, name, finite)

    def check(self, where: str) -> None:
        """Raise NonFinite naming the first bad step, if any; ``where``: "of the search". Waits for the device."""
        if not self._first:
            return
        steps = torch.stack(list(self._first.values())).tolist()
        bad = {name: int(step) for name, step in zip(self._first, steps, strict=True) if step >= 0}
        if bad:
            first = min(bad.values())
            names = [name for name, step in bad.items() if step == first]
            raise NonFinite(_sentence(names, f"at step {first} {where}"))

    def _note(self, step: int, name: str, finite: Tensor) -> None:
        if name not in self._first:
            self._first[name] = torch.full((), -1, dtype=torch.int64, device=finite.device)
        first = self._first[name]
        self._first[name] = torch.where(finite | (first >= 0), first, step)


def _sentence(names: list[str], where: str) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (
        f"{', '.join(names[:_NAMED])}{more} not finite {where}: choose a smaller learning rate; "
        "the last good checkpoint, if one was written, stays"
    )
