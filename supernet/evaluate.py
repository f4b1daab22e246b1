"""Metrics of (net, p), or of a child, on a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.runtime.random import reseed
from supernet.types import Batch


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; training mode afterwards."""
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        net.train()


def predict(
    forward: Callable[[Tensor], Tensor], batches: Iterable[Batch], poll: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor]:
    """``logits_BK`` and ``y_B`` of all batches together; ``poll`` is called before each, and may raise to interrupt.

    What an operation draws here (``noise``) is the same in every evaluation, whatever was drawn before: one that was
    interrupted gives the same numbers when it is repeated.
    """
    reseed(0, "predict")
    logits, targets = [], []
    for batch in batches:
        poll()
        logits.append(forward(batch.x).float())  # with bf16, the loss of the whole set would have three digits
        targets.append(batch.y)
    return torch.cat(logits), torch.cat(targets)


def loss_and_accuracy(logits_BK: Tensor, y_B: Tensor) -> dict[str, float]:
    """Mean cross-entropy, and the share of right answers."""
    correct = int((logits_BK.argmax(dim=1) == y_B).sum())
    return {"loss": float(F.cross_entropy(logits_BK, y_B)), "accuracy": correct / len(y_B)}


def classification_metrics(logits_BK: Tensor, y_B: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Everything a report tells of a classifier; precision, recall and F1 are macro averages, and per class.

    ``top5`` is there for more than five classes. ``confusion[i][j]`` counts images of class i that were taken for j.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    labels = list(range(len(classes)))
    logits_BK, y_B = logits_BK.cpu(), y_B.cpu()
    truth, guess = y_B.numpy(), logits_BK.argmax(dim=1).numpy()
    precision, recall, f1, support = precision_recall_fscore_support(truth, guess, labels=labels, zero_division=0.0)
    metrics: dict[str, Any] = {
        **loss_and_accuracy(logits_BK, y_B),
        "precision": float(precision.mean()),
        "recall": float(recall.mean()),
        "f1": float(f1.mean()),
        "per_class": [
            {"class": c, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
            for c, p, r, f, s in zip(classes, precision, recall, f1, support, strict=True)
        ],
        "confusion": confusion_matrix(truth, guess, labels=labels).tolist(),
    }
    if len(classes) > 5:
        hits_B = (logits_BK.topk(5, dim=1).indices == y_B[:, None]).any(dim=1)
        metrics["top5"] = float(hits_B.double().mean())
    return metrics
