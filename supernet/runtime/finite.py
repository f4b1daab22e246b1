"""Noticing numbers that are not finite without making the host wait for the device in each step.

:class:`FiniteWatch` keeps the first bad step of each watched value on the device. :meth:`FiniteWatch.poll` reads it
after every step where that costs no waiting: on the CPU at once, on CUDA as soon as a copy has arrived. Meanwhile
:meth:`FiniteWatch.guard` keeps a bad gradient away from alpha. :meth:`FiniteWatch.check`, and :func:`check_finite` of
the parameters, come before each checkpoint and derivation: then nothing after the bad step is ever kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from supernet.errors import UserError

_NAMED = 3


class NonFinite(UserError):
    """A loss, gradient or parameter became NaN or infinite: ``names``, in the order of the computation, at ``step`` of
    a job (None where only a state is known to be bad)."""

    def __init__(self, names: list[str], where: str, step: int | None = None) -> None:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        self.names, self.step = names, step
        self.finding = f"{', '.join(names[:_NAMED])}{more} not finite {where}"
        super().__init__(
            f"{self.finding}: choose a smaller learning rate, or nonfinite.policy=rollback; the last good checkpoint, "
            "if one was written, stays, and resume=auto goes on from it"
        )


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
        raise NonFinite(bad, where)


class FiniteWatch:
    """The first step at which each watched value was not finite, kept on the values' device. ``step`` is the step that
    is being done; whoever drives the steps sets it."""

    def __init__(self) -> None:
        self.step = 0
        self._first: dict[str, Tensor] = {}  # name -> step as int64 of no dimensions, -1 while all is well
        self._sent: tuple[Tensor, torch.cuda.Event] | None = None

    @torch.no_grad()
    def note(self, **values: Tensor) -> None:
        """Look at values of this step (``loss=loss, gradient=norm``); the host does not wait."""
        for name, value in values.items():
            self._note(name, torch.isfinite(value).all())

    @torch.no_grad()
    def guard(self, name: str, gradients: Iterable[Tensor]) -> None:
        """Zero all the gradients, in place, if one of them is not finite, and note the step; the host does not wait.

        Comes after the gradients are synchronised, so that all processes see the same and stop together.
        With a zero gradient an optimiser may still move alpha by its momentum and weight decay, by finite amounts,
        until the bad step is found; these moves are in no checkpoint.
        """
        gradients = list(gradients)
        if not gradients:
            return
        finite = torch.stack([torch.isfinite(g).all() for g in gradients]).all()
        for g in gradients:
            g.copy_(torch.where(finite, g, 0.0))  # not a product: NaN times zero is NaN
        self._note(name, finite)

    def poll(self, where: str) -> None:
        """Raise NonFinite as :meth:`check` does, as far as it can be known without waiting.

        On the CPU that is everything. On CUDA it is what a copy to the host has brought meanwhile, so a bad step is
        found a step or a few later, and named all the same. On other devices nothing is known before :meth:`check`.
        """
        if not self._first:
            return
        device = next(iter(self._first.values())).device
        if device.type == "cpu":
            self.check(where)
        elif device.type == "cuda":
            if self._sent is not None and self._sent[1].query() and bool((self._sent[0] >= 0).any()):
                self.check(where)
            if self._sent is None or self._sent[1].query():
                steps = torch.stack(list(self._first.values()))
                host = torch.empty_like(steps, device="cpu", pin_memory=True)
                host.copy_(steps, non_blocking=True)
                self._sent = host, torch.cuda.Event()
                self._sent[1].record()

    def check(self, where: str) -> None:
        """Raise NonFinite naming the first bad step, if any; ``where``: "of the search". Waits for the device."""
        if not self._first:
            return
        steps = torch.stack(list(self._first.values())).tolist()
        bad = {name: int(step) for name, step in zip(self._first, steps, strict=True) if step >= 0}
        if bad:
            first = min(bad.values())
            names = [name for name, step in bad.items() if step == first]
            raise NonFinite(names, f"at step {first} {where}", first)

    def clear(self) -> None:
        """Forget what was seen: the job goes back behind it."""
        self._first.clear()
        self._sent = None

    def _note(self, name: str, finite: Tensor) -> None:
        if name not in self._first:
            self._first[name] = torch.full((), -1, dtype=torch.int64, device=finite.device)
        first = self._first[name]
        self._first[name] = torch.where(finite | (first >= 0), first, self.step)
