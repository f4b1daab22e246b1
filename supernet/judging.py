"""How the shared weights judge a subgraph: the one probe that every strategy and the ranking use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

import torch
from torch import Tensor, nn

from supernet.errors import UserError
from supernet.runtime.compute import autocast
from supernet.runtime.random import reseed
from supernet.search import Search
from supernet.types import Batch, Mixing
from supernet.updates import quiet

BATCHES = 8
"""Training batches of a recalibration, where nothing else is said."""


class Judge:
    """Loss and accuracy of subgraphs on the part of the training split that no weight was trained on.

    Tracked statistics are those of all paths mixed. So where batch norms track (``search.statistics=running``), those
    of a subgraph are taken anew from ``recalibrate`` training batches, always the same ones, before it is judged, as in
    SPOS (arXiv:1904.00420), section 3.4. Where norms use the batch that they see, there is nothing to recalibrate.
    """

    def __init__(self, search: Search, recalibrate: int | None = None, *, images: int | None = None) -> None:
        """``recalibrate`` batches; about ``images`` of the validation data, or all of it."""
        tracks = search.config.search.statistics == "running"
        if recalibrate and not tracks:
            raise UserError(
                f"derive.recalibrate={recalibrate} would do nothing: search.statistics=batch normalises by the batch; "
                "choose running, or leave it out"
            )
        self.search = search
        self.evaluated = None if images is None else max(1, round(images / search.config.search.batch))
        self.batches = (BATCHES if recalibrate is None else recalibrate) if tracks else 0

    def __call__(self, p: Mixing) -> dict[str, float]:
        """``loss`` and ``accuracy`` of the subgraph that a one-hot p is."""
        net = self.search.parts.net
        with quiet(net):  # what training has tracked stays
            if self.batches:
                training = islice(self.search.batches["weights"].loader.epoch(0), self.batches)
                # At the precision of the steps and of the evaluation: statistics of other maps would not be its own.
                with autocast(self.search.services.device, self.search.config.precision):
                    recalibrate(net, lambda x: net(x, p), training, self.search.services.interrupt.check)
            return self.search.evaluate(p, self.evaluated)


@torch.no_grad()
def recalibrate(
    net: nn.Module,
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    poll: Callable[[], None] = lambda: None,
) -> None:
    """Replace the tracked statistics of the batch norms that ``forward`` uses by their means over batches."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    reseed(0, "recalibrate")
    try:
        for i, batch in enumerate(batches):
            poll()
            for norm in norms:
                norm.momentum = 1 / (i + 1)  # a running mean; the first batch leaves nothing of what was there
            forward(batch.x)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
