"""The fading skip connection of DARTS-: what it adds, when, and that nothing takes it for a candidate."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import make_search, run_epochs
from torch import Tensor

from supernet.derive.random import random_genotype
from supernet.derive.top2 import strongest
from supernet.errors import UserError
from supernet.modifiers.auxiliary_skip import NAME, AuxiliarySkip, decayed
from supernet.report.search_view import entropy, heat_map_png
from supernet.search import Search
from supernet.spaces.cell import Cell, MixedOp
from supernet.spaces.darts import DartsSpace
from supernet.spaces.ops import FactorizedReduce
from supernet.types import GroupMixing, Mixing

ON = "modifier=[auxiliary_skip]"


def part(search: Search) -> AuxiliarySkip:
    found = search.parts.modifiers[NAME]
    assert isinstance(found, AuxiliarySkip)
    return found


def alphas(search: Search) -> Tensor:
    columns = [len(search.parts.space.groups[0].options) - 1, None][NAME not in search.parts.space.groups[0].options]
    return torch.cat([a.detach()[..., :columns].flatten() for a in search.parts.mixer.values().values()])


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.98, 1.0])
def test_beta_falls_to_nothing(progress: float) -> None:
    epoch, epochs = 50 * progress, 50
    assert decayed(progress, 0.8, "linear") == pytest.approx(0.8 * (epochs - epoch) / epochs)
    assert decayed(progress, 0.8, "cosine") == pytest.approx(0.8 * (1 + math.cos(math.pi * epoch / epochs)) / 2)
    assert decayed(1.0, 0.8, "linear") == decayed(1.0, 0.8, "cosine") == 0.0


@pytest.mark.parametrize("parts", [1, 2])
def test_every_edge_gains_beta_times_the_skip(engine: str, parts: int) -> None:
    space = DartsSpace(
        3, 5, nodes=2, search_channels=4, search_cells=3, engine=engine, extras=(NAME,), partial=parts,
        operations=("none", "skip_connect", "sep_conv_3x3"),
    )  # fmt: skip
    torch.manual_seed(0)
    net = space.build_supernet().double()
    beta, without = 0.6, {}
    for g in space.groups:
        p_LNK = torch.rand(1, g.decisions, 4, dtype=torch.float64)
        p_LNK[..., 3] = 0.0
        without[g.name] = GroupMixing(p_LNK, g.mask_NK, torch.rand(1, g.decisions, dtype=torch.float64))
    on = {
        name: replace(g, op_LNK=g.op_LNK + beta * torch.eye(4, dtype=torch.float64)[3], mask_NK=((True,) * 4,) * 5)
        for name, g in without.items()
    }
    kinds = set()
    for cell, (kind, _) in zip(net.stack.cells, net._places, strict=True):
        assert isinstance(cell, Cell)
        for fan_out, leaving in zip(cell._fan_outs, cell.leaving, strict=True):
            x = torch.randn(2, cell.preprocess1.get_submodule("1").out_channels, 6, 6, dtype=torch.float64)

            def out(p: dict[str, GroupMixing], *, kind: str = kind, evaluate=fan_out, x: Tensor = x):  # type: ignore
                totals: dict[int, Tensor] = {}
                for target, y in evaluate(x, p[kind].at(0)):
                    totals[target] = totals.get(target, 0.0) + y
                return totals

            plain, more = out(without), out(on)
            for edge in leaving:
                assert isinstance(edge.module, MixedOp)
                skip = edge.module.ops[3]
                assert isinstance(skip, FactorizedReduce if edge.module.stride == 2 else torch.nn.Identity)
                kinds.add(edge.module.stride)
                edge_LN = without[kind].edge_LN
                assert edge_LN is not None
                added = edge_LN[0, edge.n] * beta * skip(x[:, : x.shape[1] // parts])
                if parts == 1:
                    torch.testing.assert_close(more[edge.target] - plain[edge.target], added)
                else:  # of every two channels after the shuffle, the first has been through the operations
                    difference = more[edge.target] - plain[edge.target]
                    torch.testing.assert_close(difference[:, ::parts], added)
                    assert not difference[:, 1::parts].abs().max() > 1e-12
    assert kinds == {1, 2}


def test_without_beta_the_search_is_the_plain_one_but_for_the_draw_of_its_weights(engine: str, tmp_path: Path) -> None:
    """On one set of weights: the added factorized reductions draw too, and move the draws of what is built after."""

    def trained(folder: str, *overrides: str) -> Search:
        search = make_search(tmp_path / folder, "limit.steps=3", f"engine={engine}", *overrides)
        with torch.no_grad():
            for name, weight in search.parts.net.named_parameters():
                weight.copy_(torch.linspace(-0.3, 0.4, weight.numel()).view_as(weight) * (1 + len(name) % 3))
        return run_epochs(search)

    plain, off, on = trained("plain"), trained("off", ON, "modifier.auxiliary_skip.beta=0"), trained("on", ON)
    assert torch.equal(alphas(plain), alphas(off))
    mine, others = dict(off.parts.net.named_parameters()), dict(plain.parts.net.named_parameters())
    assert others.keys() < mine.keys()
    assert all(torch.equal(mine[name], weight) for name, weight in others.items())
    assert not torch.equal(alphas(plain), alphas(on))


def test_only_the_phase_derive_is_without_it_and_no_alpha_learns_it(tmp_path: Path) -> None:
    search = make_search(tmp_path, ON, "limit.epochs=2", "limit.steps=2")
    k = search.parts.space.groups[0].options.index(NAME)
    for phase in ("alpha", "weights"):
        p = search.context().mixing(phase)["reduce"]  # type: ignore[arg-type]
        assert (p.op_LNK[..., k] == 1.0).all()
        assert all(row[k] for row in p.mask_NK)
        torch.testing.assert_close(p.op_LNK[..., :k].sum(-1), torch.ones(1, 5))
    assert all(row[k] for row in search.mean("evaluate")["normal"].mask_NK)
    early = search.mean("derive")["normal"]  # while beta is 1
    assert not early.op_LNK[..., k].any()
    assert not any(row[k] for row in early.mask_NK)
    run_epochs(search)
    assert not any(a[..., k].any() for a in search.parts.mixer.values().values())
    assert part(search).figures() == {NAME: 0.0}
    derived = search.mean("derive")
    for group in search.parts.space.groups:
        p_LNK = derived[group.name].op_LNK
        assert not p_LNK[..., k].any()
        assert not any(row[k] for row in derived[group.name].mask_NK)
        assert entropy(p_LNK) == pytest.approx(entropy(p_LNK[..., :k]))
        assert heat_map_png(group, p_LNK[0].tolist(), "a test")


def test_beta_is_halved_after_half_of_the_search(tmp_path: Path) -> None:
    search = make_search(tmp_path, ON, "limit.epochs=2", "limit.steps=2")
    search.epoch = 1
    k = search.parts.space.groups[0].options.index(NAME)
    assert (search.context().mixing("weights")["normal"].op_LNK[..., k] == 0.5).all()
    assert part(search).figures() == {NAME: 0.5}


def test_no_derivation_takes_it(tmp_path: Path) -> None:
    search = make_search(tmp_path, ON)
    p = search.mean("evaluate")  # with its mask and its weight of 1, the largest of all
    for group in search.parts.space.groups:
        k = group.options.index(NAME)
        assert all(choice != k for _, choice in strongest(p[group.name], replace(group, mask_NK=p[group.name].mask_NK)))
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        drawn = random_genotype(search.parts.space, draw)
        assert NAME not in {op for cell in drawn.cells.values() for op, _ in cell.edges}


def test_it_goes_with_edge_weights_partial_channels_and_perturbations(tmp_path: Path) -> None:
    for other in ("perturb_random", "perturb_adversarial"):
        chosen = f"modifier=[auxiliary_skip,beta_decay,edge_norm,partial_channels,{other},warm_up]"
        search = run_epochs(make_search(tmp_path / other, chosen, "modifier.warm_up.fraction=0"))
        assert all(torch.isfinite(a).all() for a in search.parts.architecture)


def test_a_relaxation_of_one_operation_is_refused(tmp_path: Path) -> None:
    search = make_search(tmp_path, ON)
    sampled = Mixing(
        {
            g.name: GroupMixing(torch.zeros(1, g.decisions, len(g.options)), g.mask_NK, active_LN=((0,) * g.decisions,))
            for g in search.parts.space.groups
        }
    )
    with pytest.raises(UserError, match="one operation an edge"):
        part(search).edit_mixing(sampled, search.moment("weights"), generator=torch.Generator(), gradient=None)
