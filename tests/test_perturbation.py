"""Derivations that train between decisions, and derivations that need no search."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_search, run_epochs, tiny_config
from planted import NEEDED, OPERATIONS, planted_task

from supernet.derive.perturbation import PerturbationJob, plan
from supernet.derive.projection import Projection, without_decision, without_option
from supernet.errors import UserError
from supernet.loop import DerivationJob, run_epoch
from supernet.runtime.signals import Interrupted
from supernet.search import Search
from supernet.train import train
from supernet.types import Mixing

PT = ("update=frozen", "derive=perturbation", "space.reductions=1")


def job_of(search: Search) -> PerturbationJob:
    job = search.parts.derivation.job(search)
    assert isinstance(job, PerturbationJob)
    return job


def run_job(job: DerivationJob) -> DerivationJob:
    while job.epoch < job.epochs:
        run_epoch(job)
    return job


def test_the_plan_has_every_choice_once_edges_before_nodes(tmp_path: Path) -> None:
    groups = make_search(tmp_path, "space.nodes=4").parts.space.groups
    rounds = plan(groups, 0)
    assert len(rounds) == 14 + 3, "as published: 14 edges, and 3 nodes with more than two inputs"
    for group in groups:
        own = [task for tasks in rounds for task in tasks if task[1] == group.name]
        assert sorted(own[:14]) == [("option", group.name, n) for n in range(14)]
        assert sorted(own[14:]) == [("inputs", group.name, target) for target in (3, 4, 5)]
        assert [n for _, _, n in own[:14]] != list(range(14)), "in a random order"
    assert rounds != plan(groups, 1)


@pytest.mark.parametrize("engine", ["plain", "banked"])
def test_a_projected_p_is_the_network_of_what_is_left(engine: str, tmp_path: Path) -> None:
    search = make_search(tmp_path, "search.alpha.init_std=0.5", f"engine={engine}", "space.reductions=1")
    p, net, x_BCHW = search.mean("evaluate"), search.parts.net, torch.randn(4, 1, 8, 8)
    name, group = next(iter(search.parts.mixer.groups.items()))
    projection = Projection(list(search.parts.mixer.groups.values()))
    projection.choose(name, 0, 4)
    projection.choose(name, 2, 5)
    projection.drop(name, 2)
    moment, noise = search.moment("evaluate"), torch.Generator()
    projected = projection.edit_mixing(p, moment, generator=noise, gradient=None)
    by_hand = p[name].op_LNK.clone()
    by_hand[:, 0] = torch.eye(len(group.options))[4]
    by_hand[:, 2] = 0.0
    torch.testing.assert_close(projected[name].op_LNK, by_hand)
    assert [sum(row) for row in projected[name].mask_NK[:3]] == [1, 8, 0]
    full = Mixing({**p, name: type(p[name])(by_hand, p[name].mask_NK)})  # all evaluated, with these weights
    with torch.no_grad():
        torch.testing.assert_close(net(x_BCHW, projected), net(x_BCHW, full), rtol=1e-4, atol=1e-5)
        less = p[name].op_LNK.clone()
        less[:, 1, 3] = 0.0
        expected = net(x_BCHW, Mixing({**p, name: type(p[name])(less, p[name].mask_NK)}))
        without = Mixing({**p, name: without_option(p[name], 1, 3)})
        torch.testing.assert_close(net(x_BCHW, without), expected, rtol=1e-4, atol=1e-5)
    again = Projection(list(search.parts.mixer.groups.values()))
    again.load_state_dict(projection.state_dict())
    same = again.edit_mixing(p, moment, generator=noise, gradient=None)
    assert all(torch.equal(a, b) for a, b in zip(projected.tensors(), same.tensors(), strict=True))


def test_a_dropped_edge_lets_nothing_past_where_channels_bypass_operations(tmp_path: Path) -> None:
    search = make_search(tmp_path, "modifier=[partial_channels]", "engine=plain", "space.reductions=1")
    p, name = search.mean("evaluate"), "normal"
    gone = without_decision(p[name], 0)
    assert gone.edge_LN is not None and gone.edge_LN[0].tolist() == [0.0] + [1.0] * 4
    net, x_BCHW = search.parts.net, torch.randn(4, 1, 8, 8)
    outputs = []
    state0 = net.get_submodule("stack.cells.0.preprocess0")
    for scale in (1.0, 3.0):  # of what no edge takes in any more
        with torch.no_grad():
            handle = state0.register_forward_hook(lambda module, args, y, scale=scale: y * scale)
            edited = without_decision(without_decision(p[name], 0), 2)  # both edges out of state 0
            outputs.append(net(x_BCHW, Mixing({**p, name: edited})))
            handle.remove()
    assert torch.equal(*outputs)


def scored(search: Search, scores: dict[str, torch.Tensor]) -> Any:
    """An evaluation that is known: the accuracy is the sum of p times a score of every option."""

    def evaluate(p: Mixing | None = None) -> dict[str, float]:
        p = search.mean("evaluate") if p is None else p
        total = sum(float((p[name].op_LNK[0] * score_NK).sum()) for name, score_NK in scores.items())
        return {"accuracy": total, "loss": -total}

    return evaluate


def test_what_is_missed_most_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = run_epochs(make_search(tmp_path, *PT))
    draw = torch.Generator().manual_seed(1)
    groups = search.parts.mixer.groups
    scores = {n: torch.rand(g.decisions, len(g.options), generator=draw) for n, g in groups.items()}
    monkeypatch.setattr(search, "evaluate", scored(search, scores))
    genotype = run_job(job_of(search)).genotype()  # type: ignore[attr-defined]
    for name, group in groups.items():
        best_N = scores[name][:, 1:].max(dim=1)  # without none
        for target in (2, 3):
            edges = [n for n in range(group.decisions) if group.targets[n] == target]
            top = sorted(sorted(edges, key=lambda n: -float(best_N.values[n]))[:2])
            expected = tuple((group.options[int(best_N.indices[n]) + 1], group.sources[n]) for n in top)
            assert genotype.cells[name].nodes[target - 2] == expected


def test_one_choice_is_the_argmin_and_the_argmax_of_the_accuracy_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = make_search(tmp_path, *PT, "space.nodes=3")
    name, group = next(iter(search.parts.mixer.groups.items()))
    score_NK = torch.rand(group.decisions, len(group.options), generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(search, "evaluate", scored(search, {name: score_NK}))
    job = job_of(search)
    assert isinstance(job, PerturbationJob)
    last = [n for n in range(group.decisions) if group.targets[n] == max(group.targets)]
    for n in last:  # what is missed most, none left out
        assert job._least_spared(group, n) == 1 + int(score_NK[n, 1:].argmax())
    p_NK = search.mean("evaluate")[name].op_LNK[0]
    lost = {n: float((p_NK[n] * score_NK[n]).sum()) for n in last}
    assert job._most_spared(group, last) == sorted(last, key=lost.__getitem__)[: len(last) - 2]


def test_tuning_trains_weights_from_a_tenth_of_the_rate_and_leaves_a_frozen_alpha(tmp_path: Path) -> None:
    search = run_epochs(make_search(tmp_path, *PT))
    alphas = [a.detach().clone() for a in search.parts.architecture]
    weights = [w.detach().clone() for w in search.weights]
    job = job_of(search)
    assert (job.interval, job.epochs) == (1, 5), "5 edges and a node: 6 rounds with an epoch between two"
    rates = []
    while job.epoch < job.epochs:
        run_epoch(job)
        rates.append(search.weight_optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.0025) and rates == sorted(rates, reverse=True)
    assert any(not torch.equal(w, b) for w, b in zip(search.weights, weights, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(search.parts.architecture, alphas, strict=True))
    assert search.step == search.epochs * search.steps_per_epoch, "the search itself is over"
    job.genotype()


def test_the_share_of_tuning_is_of_the_search(tmp_path: Path) -> None:
    search = make_search(tmp_path, *PT, "limit.epochs=null", "search.epochs=50")
    assert job_of(search).interval == 5, "as published"


def report_of(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text())
    for part in ("search", "derivation", "child"):
        (report[part] or {}).pop("seconds", None)
    return {**report, "command": ""}


def train_to_the_end(folder: Path) -> None:
    options = ("derive=perturbation", "space.reductions=1", "limit.cells=2", "resume=auto")
    train(tiny_config(f"run_dir={folder}", *options))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    train_to_the_end(folder)
    return folder


@pytest.mark.parametrize("at", [1, 5])
def test_a_run_that_is_stopped_between_decisions_ends_the_same(
    at: int, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PerturbationJob.train_step
    with monkeypatch.context() as patch:

        def train_step(job: PerturbationJob) -> None:
            original(job)
            if job.step + 1 == at:  # the loop counts a step when it is done
                job.services.interrupt.requested = signal.SIGTERM

        patch.setattr(PerturbationJob, "train_step", train_step)
        with pytest.raises(Interrupted):
            train_to_the_end(tmp_path)
    assert list((tmp_path / "checkpoints" / "derive").glob("step-*.pt"))
    train_to_the_end(tmp_path)
    for file in ("genotype.json", "metrics.jsonl", "child.safetensors"):
        assert (tmp_path / file).read_bytes() == (undisturbed / file).read_bytes(), file
    assert report_of(tmp_path) == report_of(undisturbed)


def test_a_derivation_that_trains_is_in_the_records(undisturbed: Path) -> None:
    assert report_of(undisturbed)["derivation"]["epochs"] == 5
    assert "## Derivation" in (undisturbed / "report.md").read_text()
    phases = {json.loads(line)["phase"] for line in (undisturbed / "metrics.jsonl").read_text().splitlines()}
    assert phases == {"search", "derive", "retrain"}
    assert (undisturbed / "tensorboard" / "derive").is_dir()


def test_a_random_genotype_takes_no_search_and_the_run_is_whole(tmp_path: Path) -> None:
    reports = {}
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny_config(f"run_dir={tmp_path / folder}", "method=random", f"seed={seed}", "resume=auto"))
        reports[folder] = report_of(tmp_path / folder)
    assert reports["a"] == reports["b"] and reports["a"]["genotype"] != reports["c"]["genotype"]
    found = reports["a"]["search"]
    assert (found["epochs"], found["steps"], found["trained"]) == (0, 0, False)
    phases = [json.loads(line)["phase"] for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert set(phases) == {"retrain"}
    assert "## Search" in (tmp_path / "a" / "report.md").read_text()
    before = (tmp_path / "a" / "report.json").stat().st_mtime_ns
    train(tiny_config(f"run_dir={tmp_path / 'a'}", "method=random", "resume=auto"))
    assert (tmp_path / "a" / "report.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("derive=random",), "derive=random needs update=frozen"),
        (("method=random", "modifier=[drop_path]"), r"modifier=\[drop_path\] would do nothing"),
        (("update=frozen", "modifier=[warm_up]"), "update=frozen does not go with modifier=warm_up"),
        (("derive=perturbation", "modifier=[skip_limit]"), "does not go with modifier=skip_limit"),
    ],
)
def test_what_would_do_nothing_is_refused(overrides: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        make_search(tmp_path, *overrides)


def test_a_frozen_alpha_draws_no_batch_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = make_search(tmp_path, "update=frozen")

    def forbidden(step: int) -> None:
        raise AssertionError("an alpha batch was drawn")

    monkeypatch.setattr(search.batches["alpha"], "batch", forbidden)
    before = [a.detach().clone() for a in search.parts.architecture]
    run_epochs(search)
    assert all(torch.equal(a, b) for a, b in zip(search.parts.architecture, before, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_planted_operation_is_found_with_alpha_at_uniform(seed: int, tmp_path: Path) -> None:
    from test_search import PLANTED

    overrides = [*PLANTED, "search.epochs=8", f"space.operations=[{','.join(OPERATIONS)}]", f"seed={seed}"]
    search = run_epochs(make_search(tmp_path, *overrides, "method=pt_uniform", task=planted_task(seed)))
    genotype = run_job(job_of(search)).genotype()  # type: ignore[attr-defined]
    assert NEEDED in [op for op, _ in genotype.cells["normal"].edges]
