"""A batch in parts, of which one at a time is in memory with all that a backward pass needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from supernet.errors import UserError
from supernet.interfaces import StepResult
from supernet.types import Batch


def in_parts(step: Callable[[Batch], StepResult], batch: Batch, parts: int, net: nn.Module) -> StepResult:
    """``step(batch)``, computed in ``parts`` of the batch whose sizes differ by at most one; 1 is the batch as a whole.

    The loss is the mean over the batch and has a graph like any other, so a caller differentiates it as it always does.
    Each part's forward pass is repeated when its gradient is computed (torch.utils.checkpoint), about a third more
    work. Without batch statistics the gradient is that of the whole batch. With them, a batch norm sees the statistics
    of a part, and its running ones move once for each part; they do not move again in the repetition. Random draws of
    ``step`` are repeated exactly, those of torch; they are others than those of the whole batch.

    Raises UserError for a step that hands something on to the next (``carry``), since that belongs to a whole batch.
    """
    if parts == 1:
        return step(batch)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), KeepBuffers(net)

    results, shares = [], []
    for x, y in zip(batch.x.tensor_split(parts), batch.y.tensor_split(parts), strict=True):
        result: StepResult = checkpoint(lambda x, y: step(Batch(x, y)), x, y, use_reentrant=False, context_fn=contexts)
        if result.carry is not None:
            raise UserError(f"memory.micro_batches={parts}: this task hands a state on between batches, so set it to 1")
        results.append(result)
        shares.append(len(y) / len(batch.y))
    loss = torch.stack([share * r.loss for share, r in zip(shares, results, strict=True)]).sum()
    metrics = {name: torch.stack([r.metrics[name] for r in results]).sum() for name in results[0].metrics}
    return StepResult(loss, metrics)


class KeepBuffers:
    """Within this context, which may be entered again and again, the network's buffers may move; afterwards they are
    put back."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._saved: list[list[Tensor]] = []

    def __enter__(self) -> None:
        self._saved.append([buffer.clone() for buffer in self._net.buffers()])

    def __exit__(self, *_: object) -> None:
        for buffer, before in zip(self._net.buffers(), self._saved.pop(), strict=True):
            buffer.copy_(before)
