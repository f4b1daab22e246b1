"""The expected cost of p: against the counts of whole networks, the closed form of its gradient, and a resume."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import make_search, run_epochs
from torch.utils.flop_counter import FlopCounterMode

from supernet.interfaces import SearchSpace, Setting
from supernet.modifiers.cost import Cost, edges_into, expected_cost, penalty, uniform
from supernet.schema.modifiers import CostConfig
from supernet.spaces import costs
from supernet.spaces.child_costs import count_macs
from supernet.spaces.costs import cost_table, multiply_adds, parameters
from supernet.spaces.darts import DartsSpace
from supernet.spaces.nasbench201 import Nasbench201Space
from supernet.types import GroupMixing, Mixing, Moment

CPU, IMAGE = torch.device("cpu"), (3, 8, 8)
ALPHA = Moment("alpha", 0, 0.0, 0.0)
TINY_SPACE = DartsSpace(
    3, 4, nodes=1, operations=("skip_connect", "sep_conv_3x3"), reductions=1, search_channels=4,
    search_cells=3, child_channels=4, child_cells=3, auxiliary=False,
)  # fmt: skip
"""Two edges a cell, both kept, and children of the supernet's size: what p costs is what its children cost."""


def into(space: SearchSpace) -> dict[str, torch.Tensor]:
    return {g.name: edges_into(g, CPU) for g in space.groups}


def random_p(space: DartsSpace, seed: int = 0, placements: bool = False) -> Mixing:
    draw = torch.Generator().manual_seed(seed)
    groups = {}
    for g in space.groups:
        alpha_LNK = torch.randn(g.placements if placements else 1, g.decisions, len(g.options), generator=draw)
        groups[g.name] = GroupMixing(alpha_LNK.softmax(-1), g.mask_NK)
    return Mixing(groups)


def one_hot(space: SearchSpace, chosen: dict[str, tuple[int, ...]]) -> Mixing:
    groups = {}
    for g in space.groups:
        rows = torch.nn.functional.one_hot(torch.tensor(chosen[g.name]), len(g.options)).float()
        groups[g.name] = GroupMixing(rows[None], g.mask_NK, active_LN=(chosen[g.name],))
    return Mixing(groups)


def choices(space: DartsSpace) -> list[dict[str, tuple[int, ...]]]:
    names = [g.name for g in space.groups]
    each = [itertools.product(range(len(g.options)), repeat=g.decisions) for g in space.groups]
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*each)]


def test_the_expected_count_is_the_mean_over_all_children() -> None:
    """Multiply-adds of 16 whole children, built and counted one by one, weighted with their probabilities."""
    space, p = TINY_SPACE, random_p(TINY_SPACE)
    groups = {g.name: g for g in space.groups}
    tables = cost_table(space, IMAGE, multiply_adds, CPU)
    mean = 0.0
    for chosen in choices(space):
        genotype = space.genotype({name: list(enumerate(ks)) for name, ks in chosen.items()})
        share = math.prod(float(p[name].op_LNK[0, n, k]) for name, ks in chosen.items() for n, k in enumerate(ks))
        mean += share * count_macs(space, genotype, IMAGE[1:])
    skips = {name: (0, 0) for name in groups}
    genotype = space.genotype({name: list(enumerate(ks)) for name, ks in skips.items()})
    rest = count_macs(space, genotype, IMAGE[1:]) - float(expected_cost(one_hot(space, skips), tables, into(space)))
    assert mean - rest == pytest.approx(float(expected_cost(p, tables, into(space))))


@pytest.mark.parametrize(
    "space",
    [
        TINY_SPACE,
        DartsSpace(3, 4, nodes=2, operations=("none", "dil_conv_5x5", "skip_connect"), search_channels=4),
        DartsSpace(3, 4, nodes=2, operations=("none", "sep_conv_3x3"), search_channels=8, search_cells=4, partial=4),
        Nasbench201Space(3, 4, search_channels=4, search_cells=2),
    ],
)  # fmt: skip
def test_the_table_is_what_whole_supernets_count(space: DartsSpace | Nasbench201Space) -> None:
    """The multiply-adds of the plain supernet with one option at every edge, less those with only the first option."""
    plain = replace(space, engine="plain")
    with torch.device("meta"):
        net = plain.build_supernet()

    def counted(chosen: dict[str, tuple[int, ...]]) -> float:
        p = Mixing({name: replace(g, op_LNK=g.op_LNK.to("meta")) for name, g in one_hot(plain, chosen).items()})
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.empty(2, *IMAGE, device="meta"), p)
        return counter.get_total_flops() / 4

    groups = {g.name: g for g in space.groups}
    tables = cost_table(space, IMAGE, multiply_adds, CPU)
    first = {name: (0,) * g.decisions for name, g in groups.items()}
    base = expected_cost(one_hot(space, first), tables, into(space))
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        chosen = {
            name: tuple(torch.randint(len(g.options), (g.decisions,), generator=draw).tolist())
            for name, g in groups.items()
        }
        more = expected_cost(one_hot(space, chosen), tables, into(space)) - base
        assert counted(chosen) - counted(first) == pytest.approx(float(more))


def test_parameters_are_those_of_the_supernet_and_none_is_free() -> None:
    space = DartsSpace(3, 4, nodes=2, search_channels=4, search_cells=5)
    tables = cost_table(space, IMAGE, parameters, CPU)
    net = space.build_supernet()
    candidates = sum(w.numel() for name, w in net.named_parameters() if ".ops." in name)
    assert sum(float(table.sum()) for table in tables.values()) == candidates
    assert all(not table[:, :, space.operations.index("none")].any() for table in tables.values())
    skip = space.operations.index("skip_connect")
    assert not tables["normal"][:, :, skip].any()
    assert tables["reduce"][:, :, skip].any(), "the skip connection of a strided edge is a factorized reduction"


def test_extra_options_have_a_cost_too() -> None:
    space = DartsSpace(3, 4, nodes=1, operations=("sep_conv_3x3",), extras=("dil_conv_3x3",), search_channels=4)
    table = cost_table(space, (3, 16, 16), parameters, CPU)["normal"]
    assert table.shape[-1] == 2
    assert (table > 0).all()


@pytest.mark.parametrize("placements", [False, True])
@pytest.mark.parametrize("form", ["linear", "log"])
def test_the_gradient_has_its_closed_form(form: str, placements: bool) -> None:
    """d term / d alpha_k = weight * scale * p_k (c_k - sum over j of p_j c_j), scale = 1/target or 1/E."""
    target, weight = 1e3, 0.7
    cost = Cost(CostConfig(weight=weight, target=target, form=form))
    cost.bind(Setting(TINY_SPACE, IMAGE, CPU, 0))
    groups = {g.name: g for g in TINY_SPACE.groups}
    alphas = {
        name: torch.randn(g.placements if placements else 1, g.decisions, len(g.options), requires_grad=True)
        for name, g in groups.items()
    }
    p = Mixing({name: GroupMixing(a.softmax(-1), groups[name].mask_NK) for name, a in alphas.items()})
    term = cost.loss_term(p, {}, ALPHA)
    assert term is not None and cost.tables is not None
    term.backward()
    costs_LNK = {name: t if placements else t.sum(0, keepdim=True) for name, t in cost.tables.items()}
    total = sum(float((p[name].op_LNK.detach() * c).sum()) for name, c in costs_LNK.items())
    scale = 1 / target if form == "linear" else 1 / total
    assert total > target
    for name, alpha_LNK in alphas.items():
        p_LNK, c_LNK = p[name].op_LNK.detach(), costs_LNK[name]
        closed = weight * scale * p_LNK * (c_LNK - (p_LNK * c_LNK).sum(-1, keepdim=True))
        torch.testing.assert_close(alpha_LNK.grad, closed)
    assert cost.loss_term(p, {}, replace(ALPHA, phase="weights")) is None


def test_the_log_form_is_silent_below_its_target_and_zero_costs_have_a_gradient() -> None:
    for ratio, value, slope in ((0.0, 0.0, 0.0), (0.5, 0.0, 0.0), (2.0, math.log(2.0), 0.5)):
        x = torch.tensor(ratio, requires_grad=True)
        y = penalty(x, "log")
        y.backward()
        assert x.grad is not None
        assert (float(y.detach()), float(x.grad)) == pytest.approx((value, slope))


def test_equal_edge_weights_change_nothing_and_others_shift_the_cost() -> None:
    tables, p = cost_table(TINY_SPACE, IMAGE, multiply_adds, CPU), random_p(TINY_SPACE)
    equal = Mixing({name: replace(g, edge_LN=torch.full((1, 2), 0.5)) for name, g in p.items()})
    first = Mixing({name: replace(g, edge_LN=torch.tensor([[1.0, 0.0]])) for name, g in p.items()})
    torch.testing.assert_close(
        expected_cost(equal, tables, into(TINY_SPACE)), expected_cost(p, tables, into(TINY_SPACE))
    )
    alone = sum(2 * float((g.op_LNK * tables[name])[:, 0].sum()) for name, g in p.items())
    assert float(expected_cost(first, tables, into(TINY_SPACE))) == pytest.approx(alone)


@pytest.mark.parametrize("engine", ["plain", "banked"])
def test_a_cost_moves_alpha_to_what_is_cheap_and_no_weight_to_nothing(engine: str, tmp_path: Path) -> None:
    def searched(*overrides: str) -> tuple[Mixing, dict[str, float]]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        small = [f"engine={engine}", "space.nodes=1", "space.operations=[skip_connect,sep_conv_5x5]"]
        search = run_epochs(make_search(folder, *small, *overrides))
        cost = search.parts.modifiers.get("cost")
        return search.derived()[0], cost.figures() if cost else {}

    plain, _ = searched()
    off, _ = searched("modifier=[cost]", "modifier.cost.weight=0")
    on, figures = searched("modifier=[cost]", "modifier.cost.weight=100")
    for name in plain:
        assert torch.equal(off[name].op_LNK, plain[name].op_LNK)
    assert (on["normal"].op_LNK[..., 0] > plain["normal"].op_LNK[..., 0]).all()
    assert figures["cost/flops"] > 0


def test_latencies_are_measured_once_and_go_on_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    def bound() -> Cost:
        cost = Cost(CostConfig(metric="latency"))
        cost.bind(Setting(TINY_SPACE, IMAGE, CPU, 0))
        return cost

    first, p = bound(), random_p(TINY_SPACE)
    before = torch.get_rng_state()
    term = first.loss_term(p, {}, ALPHA)
    assert torch.equal(before, torch.get_rng_state()), "measuring draws nothing"
    assert first.tables is not None
    conv, skip = (
        first.tables["normal"][..., TINY_SPACE.operations.index(op)] for op in ("sep_conv_3x3", "skip_connect")
    )
    assert (conv > skip).all()
    again = bound()
    again.load_state_dict(first.state_dict())
    monkeypatch.setattr(costs, "milliseconds", None)
    assert again.loss_term(p, {}, ALPHA) == term
    assert again.figures() == first.figures()


def test_without_a_target_a_uniform_p_has_the_ratio_one() -> None:
    cost = Cost(CostConfig(weight=1.0, form="linear"))
    cost.bind(Setting(TINY_SPACE, IMAGE, CPU, 0))
    assert cost.loss_term(uniform(cost.groups, CPU), {}, ALPHA) == pytest.approx(1.0)
