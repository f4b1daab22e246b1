"""What edits the gradients of the weights: layer alignment against autograd, frozen operations against closed forms."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import make_search, run_epochs, saved
from torch import Tensor, nn

from supernet.config import compose
from supernet.errors import UserError
from supernet.interfaces import Setting, StepContext, StepResult
from supernet.modifiers.layer_alignment import (
    LayerAlignment,
    alignment,
    alignment_difference,
    alignment_gradient,
    expanded,
)
from supernet.modifiers.operation_freezing import (
    OperationFreezing,
    candidates_of,
    matching,
    published_matching,
)
from supernet.schema.modifiers import LayerAlignmentConfig, OperationFreezingConfig
from supernet.search import Search
from supernet.spaces.cell import MixedOp
from supernet.spaces.darts import DartsSpace
from supernet.types import GroupMixing, Mixing, Moment, Phase

SMALL = ["space.operations=[none,skip_connect,max_pool_3x3,sep_conv_3x3]", "search.alpha.lr=0.1"]


def tiny(engine: str, cells: int = 4) -> tuple[StepContext, dict[str, int], Callable[[Mixing], Tensor]]:
    """A tiny problem in double precision with fixed batches of both phases; the loss is that of the weight phase."""
    torch.manual_seed(0)
    space = DartsSpace(
        1, 3, nodes=2, search_channels=2, search_cells=cells, reductions=1, engine=engine, statistics="running",
        operations=("none", "skip_connect", "max_pool_3x3", "sep_conv_3x3"),
    )  # fmt: skip
    net = space.build_supernet().double()
    batches: dict[Phase, tuple[Tensor, Tensor]] = {
        phase: (torch.randn(12, 1, 8, 8, dtype=torch.float64), torch.randint(3, (12,)))
        for phase in ("weights", "alpha")
    }
    p = Mixing(
        {
            g.name: GroupMixing(torch.randn(1, g.decisions, len(g.options), dtype=torch.float64).softmax(-1), g.mask_NK)
            for g in space.groups
        }
    )

    def run(phase: Phase, p: Mixing) -> StepResult:
        x, y = batches[phase]
        return StepResult(F.cross_entropy(net(x, p), y), {})

    weights = list(net.parameters())
    ctx = StepContext(
        net=net,
        mixing=lambda phase: p,
        run=run,
        alpha_term=lambda: None,
        sync_grads=lambda grads: None,
        guard=lambda grads: None,
        architecture=[],
        weights=weights,
        weight_optimizer=torch.optim.SGD(weights, lr=0.1),
        step=0,
        moment=lambda phase: Moment(phase, 0, 0.5, 0.5),
    )
    return ctx, {"normal": cells - 1}, lambda p: run("weights", p).loss


def pairwise(gradient_LNK: Tensor) -> Tensor:
    """Mean cosine similarity over pairs of cells, pair by pair."""
    flat = gradient_LNK.flatten(1)
    return torch.stack([F.cosine_similarity(a, b, dim=0) for a, b in itertools.combinations(flat, 2)]).mean()


def test_alignment_and_its_derivative_are_those_of_the_mean_cosine() -> None:
    gradient = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    expected = pairwise(gradient)
    value, direction = alignment(gradient.detach())
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(direction, torch.autograd.grad(expected, gradient)[0])
    same, still = alignment(torch.ones(3, 2, 2).double())
    assert float(same) == pytest.approx(1.0) and float(still.abs().max()) < 1e-12
    assert torch.isfinite(alignment(torch.zeros(3, 2, 2))[1]).all(), "cells without a gradient"


@pytest.mark.parametrize("derivative", ["exact", "difference"])
@pytest.mark.parametrize("engine", ["plain", "banked"])
def test_the_pull_on_the_weights_is_the_gradient_of_the_alignment(engine: str, derivative: str) -> None:
    ctx, placements, _ = tiny(engine)
    buffers = [b.clone() for b in ctx.net.buffers()]
    if derivative == "exact":
        value, pull_W = alignment_gradient(ctx, placements)
    else:  # a step so small that it crosses no kink
        value, pull_W = alignment_difference(ctx, placements, epsilon=1e-7)
    assert buffers and all(map(torch.equal, ctx.net.buffers(), buffers)), "no buffer changes"
    assert all(w.grad is None and w.requires_grad for w in ctx.weights)

    exact_ctx, _, exact_loss = tiny("plain")  # the same problem: second derivatives need the plain engine
    leaf = expanded(exact_ctx.mixing("weights"), placements).leaf()
    (layers,) = torch.autograd.grad(exact_loss(leaf), [leaf["normal"].op_LNK], create_graph=True)
    expected = pairwise(layers)
    torch.testing.assert_close(value, expected.detach())
    assert abs(float(value)) < 0.999
    grads = torch.autograd.grad(expected, list(exact_ctx.weights), allow_unused=True)
    scale = max(float(g.abs().max()) for g in grads if g is not None)
    for found, wanted in zip(pull_W, grads, strict=True):
        if found is not None:
            torch.testing.assert_close(
                found, torch.zeros_like(found) if wanted is None else wanted, rtol=1e-3, atol=1e-5 * scale
            )
    assert scale > 0 and sum(g is not None for g in pull_W) > len(pull_W) / 2


def test_weights_follow_loss_and_alignment_by_the_published_sign() -> None:
    ctx, placements, loss = tiny("plain")
    modifier = LayerAlignment(LayerAlignmentConfig(weight=0.5))
    modifier.placements = placements
    before = torch.autograd.grad(loss(ctx.mixing("weights")), list(ctx.weights), allow_unused=True)
    for weight, grad in zip(ctx.weights, before, strict=True):
        weight.grad = None if grad is None else grad.clone()
    modifier.edit_gradients(ctx.net, ctx)
    _, pull_W = alignment_gradient(ctx, placements)
    for weight, grad, pull in zip(ctx.weights, before, pull_W, strict=True):
        if grad is None:
            assert weight.grad is None
        else:
            assert pull is not None and weight.grad is not None
            torch.testing.assert_close(weight.grad, grad - 0.5 * 0.5 * pull)  # weight times the progress
    # Along the pull, the alignment grows.
    value, _ = alignment_gradient(ctx, placements)
    norm = torch.nn.utils.get_total_norm([g for g in pull_W if g is not None])
    with torch.no_grad():
        for weight, pull in zip(ctx.weights, pull_W, strict=True):
            if pull is not None:
                weight.add_(pull * 1e-3 / norm)
    assert float(alignment_gradient(ctx, placements)[0]) > float(value)


def weights_of(search: Search) -> Tensor:
    return torch.cat([w.detach().flatten() for w in search.weights])


@pytest.mark.parametrize("engine", ["plain", "banked"])
def test_alignment_moves_the_weights_when_on_and_nothing_when_off(tmp_path: Path, engine: str) -> None:
    def run(name: str, *overrides: str) -> Search:
        return run_epochs(make_search(tmp_path / name, f"engine={engine}", "limit.steps=3", *SMALL, *overrides))

    plain, chosen = run("plain"), "modifier=[layer_alignment]"
    off, on = run("off", chosen, "modifier.layer_alignment.weight=0"), run("on", chosen)
    assert torch.equal(weights_of(plain), weights_of(off))
    published = run("published", chosen, "modifier.layer_alignment.derivative=difference")
    assert len({weights_of(search).sum().item() for search in (plain, on, published)}) == 3
    assert -1.0 <= on.parts.modifiers["layer_alignment"].figures()["layer_alignment"] <= 1.0


def test_the_cells_that_are_aligned_follow_from_the_space() -> None:
    def placements(cells: int, groups: str) -> dict[str, int]:
        space = DartsSpace(1, 3, search_channels=2, search_cells=cells)
        modifier = LayerAlignment(LayerAlignmentConfig(groups=groups))
        modifier.bind(Setting(space, (1, 8, 8), torch.device("cpu"), seed=0))
        return modifier.placements

    assert placements(8, "largest") == {"normal": 6}, "as in the published code"
    assert placements(8, "all") == {"normal": 6, "reduce": 2}
    modifier = LayerAlignment(LayerAlignmentConfig())
    with pytest.raises(UserError, match=r"search\.cells"):
        modifier.begin_stage(DartsSpace(1, 3, search_cells=2, reductions=1))


def test_gradient_matching_is_the_cosine_of_whole_operations() -> None:
    train = [[torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])], [torch.tensor([[1.0, 1.0]])], [torch.zeros(1, 2)]]
    valid = [[torch.tensor([[3.0, 0.0]]), torch.tensor([-4.0])], [torch.tensor([[2.0, 2.0]])], [torch.ones(1, 2)]]
    torch.testing.assert_close(matching(train, valid), torch.tensor([(9 - 16) / 25, 1.0, 0.0]))


def test_the_published_measure_adds_the_two_gradients_first() -> None:
    # Orthogonal gradients of one length, in each column: the cosine of t and t + v is 1 / sqrt(2).
    train, valid = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    assert float(published_matching([[train]], [[valid]])) == pytest.approx(2**-0.5)
    opposite = published_matching([[train, train]], [[-2 * train, valid]])
    assert float(opposite) == pytest.approx((-1 + 2**-0.5) / 2), "a mean over tensors"


def test_skip_connections_are_never_frozen_and_every_other_weight_of_an_edge_can_be() -> None:
    net = DartsSpace(1, 3, nodes=2, search_channels=2, search_cells=4).build_supernet()
    candidates = candidates_of(net)
    listed = {id(w) for c in candidates for w in c.weights}
    for module in net.modules():
        if isinstance(module, MixedOp):
            for option, operation in zip(module.options, module.ops, strict=True):
                for weight in operation.parameters():
                    assert (id(weight) in listed) == (option != "skip_connect")
    assert len(listed) == sum(len(c.weights) for c in candidates) and len({c.path for c in candidates}) == len(
        candidates
    )
    with pytest.raises(UserError, match="no operation"):
        candidates_of(nn.Linear(2, 2))


@pytest.mark.parametrize("engine", ["plain", "banked"])
def test_scores_are_those_of_the_two_phases_gradients(engine: str) -> None:
    ctx, _, _ = tiny(engine)
    p = ctx.mixing("weights")
    candidates = candidates_of(ctx.net)
    grads = {}
    for phase in ("alpha", "weights"):
        ctx.net.zero_grad()
        ctx.run(phase, p).loss.backward()
        grads[phase] = {c.path: torch.cat([w.grad.flatten() for w in c.weights]) for c in candidates}  # type: ignore[union-attr]
    buffers = [b.clone() for b in ctx.net.buffers()]
    modifier = OperationFreezing(OperationFreezingConfig(measure="paper", window=3, threshold=-1.0))
    modifier.edit_gradients(ctx.net, ctx)
    assert buffers and all(map(torch.equal, ctx.net.buffers(), buffers)), "no buffer changes"
    assert modifier.sums.keys() == grads["alpha"].keys()
    for path, score in modifier.sums.items():
        torch.testing.assert_close(score, F.cosine_similarity(grads["alpha"][path], grads["weights"][path], dim=0))


def test_a_window_freezes_what_it_speaks_against_and_skips_what_was_not_sampled() -> None:
    ctx, _, _ = tiny("plain")
    modifier = OperationFreezing(OperationFreezingConfig(window=2, threshold=0.1))
    good, bad, rare = (c.path for c in candidates_of(ctx.net)[:3])
    modifier._note([good, bad, rare], torch.tensor([0.0, 0.3, 1.0]))
    assert not modifier.frozen
    state = saved(modifier.state_dict())
    modifier = OperationFreezing(OperationFreezingConfig(window=2, threshold=0.1))
    modifier.load_state_dict(state)
    modifier._note([good, bad], torch.tensor([0.3, -0.2]))
    assert modifier.frozen == {bad} and modifier.counts == {rare: 1}, "means are 0.15 and 0.05"
    ctx.run("weights", ctx.mixing("weights")).loss.backward()
    modifier.edit_gradients(ctx.net, ctx)
    for candidate in candidates_of(ctx.net):
        assert all((w.grad is None) == (candidate.path == bad) for w in candidate.weights)
    assert modifier.figures() == {"frozen_operations": 1.0}
    modifier._note([good], torch.tensor([1.0]))
    modifier._note([good], torch.tensor([1.0]))
    assert bad in modifier.frozen, "for the rest of the search"


@pytest.mark.parametrize("engine", ["plain", "banked"])
def test_frozen_operations_stay_where_they_are(tmp_path: Path, engine: str) -> None:
    frozen = make_search(
        tmp_path, f"engine={engine}", "limit.steps=4", *SMALL, "search.weight_decay=0.1",
        "modifier=[operation_freezing]", "modifier.operation_freezing.threshold=1",
        "modifier.operation_freezing.window=2",
    )  # fmt: skip
    frozen.begin_epoch()
    seen = []
    listed = {id(w) for c in candidates_of(frozen.parts.net) for w in c.weights}
    for _ in range(4):
        frozen.train_step()
        frozen.step_in_epoch += 1
        seen.append([w.detach().clone() for w in frozen.weights])
    for weight, first, second, last in zip(frozen.weights, seen[0], seen[1], seen[3], strict=True):
        assert torch.equal(first, second) == torch.equal(first, last) == (id(weight) in listed), (
            "momentum and decay, too"
        )


def test_nothing_changes_where_no_operation_is_frozen(tmp_path: Path) -> None:
    watched = run_epochs(
        make_search(tmp_path / "on", *SMALL, "limit.steps=3", "modifier=[operation_freezing]",
                    "modifier.operation_freezing.threshold=-1", "modifier.operation_freezing.window=1")
    )  # fmt: skip
    plain = run_epochs(make_search(tmp_path / "off", *SMALL, "limit.steps=3"))
    assert torch.equal(weights_of(watched), weights_of(plain))


@pytest.mark.parametrize("chosen", ["layer_alignment", "operation_freezing"])
def test_a_resumed_search_goes_on_bit_for_bit(tmp_path: Path, chosen: str) -> None:
    overrides = [*SMALL, "limit.steps=4", f"modifier=[{chosen}]"]
    if chosen == "operation_freezing":
        overrides += ["modifier.operation_freezing.window=3", "modifier.operation_freezing.threshold=0.65"]

    def steps(search: Search, count: int) -> Search:
        search.begin_epoch()
        for _ in range(count):
            search.train_step()
            search.step_in_epoch += 1
        return search

    whole = steps(make_search(tmp_path / "whole", *overrides), 4)
    half = steps(make_search(tmp_path / "half", *overrides), 2)
    state = saved({"state": half.state_dict(), "position": half.position()})
    resumed = make_search(tmp_path / "resumed", *overrides)
    resumed.load_state_dict(state["state"])
    resumed.set_position(state["position"])
    steps(resumed, 2)
    assert torch.equal(weights_of(whole), weights_of(resumed))
    assert whole.parts.modifiers[chosen].figures() == resumed.parts.modifiers[chosen].figures()
    if chosen == "operation_freezing":
        assert 0 < len(whole.parts.modifiers[chosen].frozen) < len(candidates_of(whole.parts.net))  # type: ignore[attr-defined]


@pytest.mark.parametrize("other", ["update=single_level", "modifier=[layer_alignment,operation_freezing]"])
def test_freezing_is_refused_where_it_has_nothing_to_compare(other: str) -> None:
    chosen = [] if other.startswith("modifier") else ["modifier=[operation_freezing]"]
    with pytest.raises(UserError, match="does not go with"):
        compose(["+experiment=darts_digits", *chosen, other])
