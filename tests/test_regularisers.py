"""Stronger weight decay, scheduled drop path, dropout on skip connections, and the limit to their number."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import make_search, run_epochs
from torch import nn

from supernet.derive.top2 import strongest
from supernet.errors import UserError
from supernet.modifiers.skip_dropout import dropout_rate
from supernet.modifiers.skip_limit import SKIP, limited
from supernet.search import Search
from supernet.spaces.cell import MixedOp, plainly
from supernet.spaces.darts import DartsSpace
from supernet.spaces.ops import OPERATIONS, Norm, register_operation
from supernet.types import Group, GroupMixing, Mixing, Moment

ENGINES = ["plain", "banked"]


def weights(search: Search) -> torch.Tensor:
    return torch.cat([w.detach().flatten() for w in search.weights])


def test_strong_l2_multiplies_the_decay_that_sgd_applies(tmp_path: Path) -> None:
    def trained(decay: float, *overrides: str) -> torch.Tensor:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        small = ["engine=plain", "space.nodes=1", f"search.weight_decay={decay}"]
        return weights(run_epochs(make_search(folder, *small, *overrides)))

    def strong(factor: float) -> list[str]:
        return ["modifier=[strong_l2]", f"modifier.strong_l2.factor={factor}"]

    plain = trained(0.03)
    torch.testing.assert_close(plain, trained(0.01, *strong(3)))
    assert torch.equal(plain, trained(0.03, *strong(1)))
    assert not torch.allclose(plain, trained(0.01))


@pytest.mark.parametrize("phases", ["weights", "both"])
def test_drop_path_ramps_up_in_its_phases(phases: str, tmp_path: Path) -> None:
    search = make_search(
        tmp_path, "modifier=[drop_path]", "modifier.drop_path.rate=0.4", f"modifier.drop_path.phases={phases}"
    )
    mixer = search.parts.mixer
    for progress in (0.0, 0.25, 1.0):
        at = {
            phase: {g.drop_path for g in mixer.sample(Moment(phase, 0, progress, progress), step=0).values()}
            for phase in ("weights", "alpha")
        }
        assert at["weights"] == {0.4 * progress}
        assert at["alpha"] == ({0.4 * progress} if phases == "both" else {0.0})
    for phase in ("evaluate", "derive"):
        assert all(g.drop_path == 0.0 for g in mixer.mean(Moment(phase, 0, 0.5, 0.5), step=0).values())


@pytest.mark.parametrize("engine", ENGINES)
def test_on_changes_the_training_and_off_changes_nothing(engine: str, tmp_path: Path) -> None:
    def trained(*overrides: str) -> torch.Tensor:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return weights(run_epochs(make_search(folder, f"engine={engine}", "limit.epochs=2", *overrides)))

    plain = trained("space.nodes=1")
    for modifier, off in (("drop_path", "rate=0"), ("skip_dropout", "rates=[0]")):
        acting = ["space.nodes=1", f"modifier=[{modifier}]"]
        assert torch.equal(plain, trained(*acting, f"modifier.{modifier}.{off}"))
        assert not torch.allclose(plain, trained(*acting))


def test_the_dropout_rate_is_that_of_the_published_epochs() -> None:
    epochs, hold, rate = 25, 10, 0.7
    for epoch in range(epochs):
        # The warm-up is one epoch ahead of the code, which begins below the rate.
        linear, exponential = rate * (epochs - epoch) / epochs, rate * math.exp(-0.2 * (epoch - hold))
        published = linear if epoch < hold else exponential
        assert dropout_rate(epoch / epochs, rate, warmup=0.4, decay=5.0) == pytest.approx(published)


def test_skip_dropout_takes_its_rates_stage_by_stage_and_only_for_skips(tmp_path: Path) -> None:
    search = make_search(tmp_path, "modifier=[skip_dropout]", "modifier.skip_dropout.rates=[0.1,0.5]")
    mixer = search.parts.mixer
    k = mixer.groups["normal"].options.index(SKIP)
    seen = []
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0):
        for phase in ("weights", "alpha"):
            rates_K = mixer.sample(Moment(phase, 0, progress, progress), step=0)["normal"].dropout_K
            assert rates_K is not None
            assert not any(rate for j, rate in enumerate(rates_K) if j != k)
        seen.append(rates_K[k])
    late = math.exp(-5.0 * 0.1)  # half of a stage, of which 0.4 are the warm-up
    assert seen == pytest.approx([0.1, 0.1 * late, 0.5, 0.5 * late, 0.5 * math.exp(-3.0)])
    later = mixer.sample(Moment("weights", 0, 0.4, 0.2, stage=1), step=0)["normal"].dropout_K
    assert later is not None and later[k] == pytest.approx(0.5 * 0.8), "stages of a StageModifier come first"
    for phase in ("evaluate", "derive"):
        assert mixer.mean(Moment(phase, 0, 0.5, 0.5), step=0)["normal"].dropout_K is None


def test_dropped_skips_keep_their_mean_and_have_the_variance_of_dropout() -> None:
    torch.manual_seed(0)
    op = MixedOp((SKIP,), (True,), 2, 1, Norm(affine=False, track=False))
    x_BCHW = torch.ones(64, 2, 16, 16)
    y_BCHW = op(x_BCHW, torch.ones(1), [0], (0.4,))
    assert y_BCHW.mean().item() == pytest.approx(1.0, abs=0.03)
    assert y_BCHW.var().item() == pytest.approx(0.4 / 0.6, abs=0.03)
    assert torch.equal(op.eval()(x_BCHW, torch.ones(1), [0], (0.4,)), x_BCHW)


def test_engines_drop_the_same_whole_edges_and_the_same_elements() -> None:
    """With an operation that no bank knows beside banked ones: an edge is one sum, however an engine adds it up."""
    register_operation("test_conv", lambda channels, stride, norm: nn.Conv2d(channels, channels, 1, stride))
    try:
        operations = (SKIP, "sep_conv_3x3", "test_conv", "none")
        space = DartsSpace(1, 3, nodes=1, operations=operations, search_channels=2, search_cells=3)
        torch.manual_seed(0)
        net = space.build_supernet()
    finally:
        del OPERATIONS["test_conv"]
    x_BCHW = torch.randn(8, 1, 8, 8)
    whole = Mixing({g.name: GroupMixing(torch.rand(1, 2, 4), g.mask_NK) for g in space.groups})

    def output(drop_path: float, dropout_K: tuple[float, ...] | None) -> list[torch.Tensor]:
        torch.manual_seed(1)
        rates = {name: replace(g, drop_path=drop_path, dropout_K=dropout_K) for name, g in whole.items()}
        leaf = Mixing(rates).leaf()
        logits_BK = net(x_BCHW, leaf)
        return [logits_BK.detach(), *torch.autograd.grad(logits_BK.square().sum(), leaf.tensors())]

    for drop_path, dropout_K in ((0.5, None), (0.0, (0.5, 0.0, 0.0, 0.0)), (0.5, (0.5, 0.3, 0.3, 0.0))):
        banked = output(drop_path, dropout_K)
        with plainly(net):
            plain = output(drop_path, dropout_K)
        torch.testing.assert_close(banked, plain, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(plain[0], output(0.0, None)[0])


def cell(
    seed: int, options: tuple[str, ...] = ("none", SKIP, "a", "b"), edges: bool = False
) -> tuple[Group, GroupMixing]:
    """A DARTS group of 14 edges with a random p that prefers skips."""
    pairs = [(s, t) for t in range(2, 6) for s in range(t)]
    mask_NK = ((True,) * len(options),) * len(pairs)
    group = Group("normal", options, *zip(*pairs, strict=True), 2, mask_NK, 2, frozenset({"none"}))  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(seed)
    alpha_LNK = torch.randn(2, 14, len(options), generator=draw)
    alpha_LNK[:, :, options.index(SKIP)] += 2.0
    edge_LN = torch.rand(1, 14, generator=draw) if edges else None
    return group, GroupMixing(F.softmax(alpha_LNK, dim=-1), mask_NK, edge_LN)


def skips(p: GroupMixing, group: Group) -> list[int]:
    kept = strongest(p, replace(group, mask_NK=p.mask_NK))
    assert len(kept) == 8, "every node keeps its two edges"
    return [n for n, k in kept if group.options[k] == SKIP]


@pytest.mark.parametrize("edges", [False, True])
def test_the_limited_cell_is_the_one_that_published_rounds_give(edges: bool) -> None:
    """Against the procedure of the paper on probabilities alone, without masks: zero the weakest, derive again."""
    for seed, limit in itertools.product(range(5), range(5)):
        group, p = cell(seed, edges=edges)
        assert len(skips(p, group)) > 4
        op_NK = (p.op_LNK.mean(0) if p.edge_LN is None else p.op_LNK.mean(0) * p.edge_LN[0][:, None]).clone()
        while True:
            best_N, k_N = op_NK[:, 1:].max(dim=1)
            into = [[n for n in range(14) if group.targets[n] == target] for target in range(2, 6)]
            kept = [n for edges_N in into for n in sorted(edges_N, key=lambda n: -best_N[n])[:2]]
            selected = [n for n in kept if k_N[n] == 0]
            if len(selected) <= limit:
                break
            op_NK[min(selected, key=lambda n: op_NK[n, 1]), 1] = 0.0
        found = limited(p, group, limit)
        assert skips(found, group) == selected
        assert strongest(found, replace(group, mask_NK=found.mask_NK)) == [(n, int(k_N[n]) + 1) for n in kept]


def test_a_cell_within_the_limit_is_left_alone_and_a_necessary_skip_stays() -> None:
    group, p = cell(0)
    assert limited(p, group, 8) is p
    only = ("none", SKIP)
    group, p = cell(0, only)
    assert limited(p, group, 2) is not p, "edges that others can replace lose their skip"
    assert len(skips(limited(p, group, 2), group)) == 8, "a node without its two edges would be no limit but a hole"


def test_skip_limit_holds_in_the_search_and_touches_only_the_derived_normal_cell(tmp_path: Path) -> None:
    def favoured(*overrides: str) -> Search:
        search = make_search(tmp_path / str(len(overrides)), *overrides, "space.nodes=4")
        with torch.no_grad():
            for alpha_LNK in search.parts.mixer.alphas.values():
                alpha_LNK[:, :, search.parts.mixer.groups["normal"].options.index(SKIP)] += 1.0
        return search

    plain, narrow = favoured(), favoured("modifier=[skip_limit]", "modifier.skip_limit.limit=1")
    count = {
        name: {kind: sum(op == SKIP for op, _ in c.edges) for kind, c in search.derived()[1].cells.items()}
        for name, search in (("plain", plain), ("narrow", narrow))
    }
    assert count == {"plain": {"normal": 8, "reduce": 8}, "narrow": {"normal": 1, "reduce": 8}}
    for phase in ("weights", "alpha", "evaluate"):
        moment = Moment(phase, 0, 0.5, 0.5)
        p, q = (search.parts.mixer.sample(moment, step=0)["normal"] for search in (plain, narrow))
        assert torch.equal(p.op_LNK, q.op_LNK)
        assert p.mask_NK == q.mask_NK


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["modifier=[skip_limit]", "modifier.skip_limit.cell=norml"], "did you mean 'normal'"),
        (["modifier=[skip_limit]", "space.operations=[none,sep_conv_3x3]"], "normal has no skip_connect"),
        (["modifier=[skip_dropout]", "space.operations=[none,sep_conv_3x3]"], "leave skip_dropout out"),
    ],
)
def test_a_limit_to_nothing_is_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        make_search(tmp_path, *overrides)
