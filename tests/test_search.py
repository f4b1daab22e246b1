"""The search as a whole: what it may see, what it may touch, and what it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compositions import random_task
from helpers import make_search, run_epochs, tiny_config
from planted import NEEDED, OPERATIONS, planted_task

from supernet.runtime.finite import NonFinite
from supernet.tasks.images import ImageClassification

PLANTED = [
    "debug=none", "limit.images=null", "limit.steps=null", "space.nodes=1", "space.reductions=0", "search.cells=2",
    "search.channels=8", "search.epochs=8", "search.batch=32", "search.lr=0.1", "search.alpha.lr=0.03",
]  # fmt: skip


def small_task() -> ImageClassification:
    return random_task(96)


def test_parameters_are_divided_among_weights_and_architecture(tmp_path: Path) -> None:
    search = make_search(tmp_path, task=small_task())
    parts = search.parts
    in_optimizer = {id(w) for group in search.weight_optimizer.param_groups for w in group["params"]}
    architecture = {id(a) for a in parts.architecture}
    assert in_optimizer == {id(w) for w in parts.net.parameters()}
    assert architecture == {id(a) for a in parts.mixer.parameters()}
    assert not in_optimizer & architecture
    state = search.state_dict()
    assert all(f"alphas.{name}" in state["mixer"] for name in parts.mixer.values()), "alpha is in the checkpoint"


class Untouchable:
    """A test split that must not be looked at."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the search looked at the test split ({name})")

    def __len__(self) -> int:
        raise AssertionError("the search looked at the test split (its length)")


def test_the_search_never_sees_the_test_split(tmp_path: Path) -> None:
    task = small_task()
    object.__setattr__(task.data, "test", Untouchable())
    run_epochs(make_search(tmp_path, task=task))
    with pytest.raises(AssertionError, match="looked at the test split"):
        task.test_loader(tiny_config(f"run_dir={tmp_path}"), torch.device("cpu"))


def test_weights_and_alpha_learn_from_disjoint_halves_and_single_level_from_all(tmp_path: Path) -> None:
    task, config = small_task(), tiny_config(f"run_dir={tmp_path}", "limit.steps=null")
    for split, share in ((True, 48), (False, 96)):
        loaders = task.search_loaders(config, torch.device("cpu"), split=split)
        indices = {name: set(loader._indices_N.tolist()) for name, loader in loaders.items()}
        assert len(indices["weights"]) == share
        assert indices["evaluate"] == indices["alpha"]
        if split:
            assert not indices["weights"] & indices["alpha"]
            assert indices["weights"] | indices["alpha"] == set(range(96))


def test_a_learning_rate_that_explodes_stops_the_search_and_derives_nothing(tmp_path: Path) -> None:
    search = make_search(tmp_path, "search.lr=1e30", "search.grad_clip=1e30", "limit.steps=6", task=small_task())
    with pytest.raises(NonFinite, match=r"at step \d+ of the search"):
        run_epochs(search)
    assert all(torch.isfinite(a).all() for a in search.parts.mixer.values().values()), "alpha stays finite"
    with torch.no_grad():
        next(iter(search.parts.mixer.values().values()))[0, 0, 0] = float("nan")
    with pytest.raises(NonFinite, match="alpha of normal"):
        search.derived()


def test_same_seed_same_search_and_another_seed_another(tmp_path: Path) -> None:
    def alphas(seed: int, folder: str) -> torch.Tensor:
        search = run_epochs(make_search(tmp_path / folder, f"seed={seed}"))
        return torch.cat([a.detach().flatten() for a in search.parts.mixer.values().values()])

    first = alphas(0, "a")
    torch.manual_seed(123)  # whatever happened before
    assert torch.equal(first, alphas(0, "b"))
    assert not torch.equal(first, alphas(1, "c"))


def planted_search(folder: Path, seed: int, operations: list[str]) -> tuple[list[str], float]:
    overrides = [*PLANTED, f"space.operations=[{','.join(operations)}]", f"seed={seed}"]
    search = run_epochs(make_search(folder, *overrides, task=planted_task(seed)))
    return [op for op, _ in search.derived()[1].cells["normal"].edges], search.valid["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_search_finds_the_planted_operation(seed: int, tmp_path: Path) -> None:
    operations, accuracy = planted_search(tmp_path, seed, OPERATIONS)
    assert operations == [NEEDED, NEEDED]
    assert accuracy > 0.95


@pytest.mark.slow
def test_without_the_planted_operation_the_task_cannot_be_learned(tmp_path: Path) -> None:
    _, accuracy = planted_search(tmp_path, 0, [op for op in OPERATIONS if op != NEEDED])
    assert accuracy < 0.65
