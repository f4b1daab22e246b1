"""What a recipe sets acts in the step: schedules, clipping, drop path, the auxiliary head's weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_search, services, tiny_config

from supernet.build import build_retraining, build_space, build_task
from supernet.loop import Job, annealed, cosine
from supernet.retraining import Retraining
from supernet.schema import SearchConfig
from supernet.spaces.genotype import load_genotype

STEP = ["momentum=0", "weight_decay=0", "lr=0.5", "lr_min=0.1"]


def make_retraining(folder: Path, *overrides: str) -> Retraining:
    config = tiny_config(f"run_dir={folder}", *(f"retrain.{text}" for text in STEP), *overrides)
    task = build_task(config)
    return build_retraining(config, task, build_space(config, task), load_genotype("DARTS_V2"), services(folder))


def test_cosine_begins_at_the_full_rate_and_heads_for_the_end() -> None:
    assert [cosine(0.5, 0.1, epoch, 4) for epoch in (0, 2, 4)] == pytest.approx([0.5, 0.3, 0.1])


def test_a_cycle_returns_to_the_full_rate_and_each_is_twice_as_long() -> None:
    settings = SearchConfig(lr=0.5, lr_min=0.1, lr_cycle=2)
    rates = [annealed(settings, epoch, 14) for epoch in range(14)]
    assert rates == pytest.approx([cosine(0.5, 0.1, e, c) for c in (2, 4, 8) for e in range(c)])
    once = SearchConfig(lr=0.5, lr_min=0.1)
    assert annealed(once, 3, 14) == cosine(0.5, 0.1, 3, 14)


@pytest.mark.parametrize("phase", ["search", "retrain"])
def test_the_rate_follows_the_cosine_and_gradients_are_clipped(phase: str, tmp_path: Path) -> None:
    overrides = ["limit.epochs=4", f"{phase}.grad_clip=1e-3"]
    job: Job
    if phase == "search":
        job = make_search(tmp_path, *(f"search.{text}" for text in STEP), *overrides)
        optimizer = job.weight_optimizer
    else:
        job = make_retraining(tmp_path, *overrides)
        optimizer = job.optimizer
    job.epoch = 2
    job.begin_epoch()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3)
    before = [w.detach().clone() for w in job.weights]
    job.train_step()
    moved = torch.cat([(w - b).detach().flatten() for w, b in zip(job.weights, before, strict=True)]).norm()
    assert float(moved) == pytest.approx(0.3 * 1e-3, rel=1e-2), "the rate times the clipped norm"


def test_drop_path_ramps_up_and_the_auxiliary_head_has_its_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_retraining(tmp_path, "limit.epochs=4", "retrain.drop_path=0.2", "retrain.auxiliary_weight=0.7")
    seen: dict[str, Any] = {}
    forward, step = job.child.forward, job.task.step

    def spy_forward(x: torch.Tensor, drop_path: float = 0.0) -> Any:
        seen["drop_path"] = drop_path
        return forward(x, drop_path)

    def spy_step(*args: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return step(*args, **kwargs)

    monkeypatch.setattr(job.child, "forward", spy_forward)
    monkeypatch.setattr(job.task, "step", spy_step)
    for epoch, rate in ((0, 0.0), (2, 0.1), (3, 0.15)):
        job.epoch = epoch
        job.begin_epoch()
        job.train_step()
        assert seen["drop_path"] == pytest.approx(rate)
        assert seen["auxiliary_weight"] == 0.7


def test_the_auxiliary_loss_is_added_with_its_weight(tmp_path: Path) -> None:
    job = make_retraining(tmp_path)
    batch = job.batches.batch(0)
    logits, auxiliary = torch.randn(2, len(batch.y), 10)

    def loss(weight: float) -> float:
        return float(job.task.step(lambda x, p: (logits, auxiliary), batch, None, auxiliary_weight=weight).loss)

    expected = torch.nn.functional.cross_entropy(auxiliary, batch.y)
    assert loss(0.4) - loss(0.0) == pytest.approx(0.4 * float(expected), rel=1e-4)
