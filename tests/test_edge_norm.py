"""Weights of edges, warm-up, and PC-DARTS as a whole."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from helpers import make_search, run_epochs
from torch import Tensor

from supernet.derive.top2 import strongest
from supernet.errors import UserError
from supernet.interfaces import SearchSpace
from supernet.modifiers.described import edited
from supernet.modifiers.edge_norm import EdgeNorm, incoming, normalised
from supernet.modifiers.warm_up import WarmUp
from supernet.schema.modifiers import WarmUpConfig
from supernet.search import Search
from supernet.spaces.darts import DartsSpace
from supernet.types import GroupMixing, Mixing, Moment

PC = ["modifier=[edge_norm,partial_channels]", "limit.epochs=2", "limit.steps=2"]


def edge_norm(search: Search) -> EdgeNorm:
    part = search.parts.modifiers["edge_norm"]
    assert isinstance(part, EdgeNorm)
    return part


def architecture(search: Search) -> list[Tensor]:
    return [a.detach().clone() for a in search.parts.architecture]


def test_edges_into_a_node_share_a_softmax() -> None:
    beta_LN = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    ours = normalised(beta_LN, incoming((2, 2, 3, 3, 3)))
    by_hand = torch.cat([beta_LN[:, :2].softmax(-1), beta_LN[:, 2:].softmax(-1)], dim=-1)
    torch.testing.assert_close(ours, by_hand)
    down = torch.randn_like(by_hand)
    torch.testing.assert_close(*(torch.autograd.grad(y, beta_LN, down)[0] for y in (ours, by_hand)))
    assert torch.isfinite(torch.autograd.grad(normalised(beta_LN, incoming((2, 2, 3, 3, 3))).sum(), beta_LN)[0]).all()
    scattered = normalised(beta_LN, incoming((3, 2, 3, 2, 3)))
    torch.testing.assert_close(scattered[:, [1, 3]], beta_LN[:, [1, 3]].softmax(-1))


@pytest.mark.parametrize(
    ("engine", "update"), [("plain", "first_order"), ("banked", "unrolled"), ("banked", "single_level")]
)
def test_beta_is_trained_with_alpha_and_is_no_weight(engine: str, update: str, tmp_path: Path) -> None:
    search = make_search(tmp_path, *PC, f"engine={engine}", f"update={update}")
    part = edge_norm(search)
    assert {id(b) for b in part.parameters()} <= {id(a) for a in search.parts.architecture}
    assert not {id(b) for b in part.parameters()} & {id(w) for w in search.weights}
    assert not any(b.any() for b in part.parameters())
    run_epochs(search)
    assert all(b.any() and torch.isfinite(b).all() for b in part.parameters())


def test_a_uniform_edge_norm_halves_the_edges_of_the_first_node(tmp_path: Path) -> None:
    search = make_search(tmp_path, *PC)
    for phase in ("alpha", "weights"):
        p = search.context().mixing(phase)  # type: ignore[arg-type]
        torch.testing.assert_close(p["normal"].edge_LN, torch.tensor([[1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3]]))
    for phase in ("evaluate", "derive"):
        assert search.mean(phase)["reduce"].edge_LN is not None  # type: ignore[arg-type]
    figures = edge_norm(search).figures()
    assert figures["edge_normal/2_from_0"] == 0.5
    assert len(figures) == 10


def test_a_derivation_takes_the_edges_into_account(tmp_path: Path) -> None:
    search = make_search(tmp_path, *PC)
    with torch.no_grad():
        for beta_LN in edge_norm(search).beta_LN.values():
            beta_LN[0, 2:] = torch.tensor([0.0, 1.0, 5.0])
    _, genotype = search.derived()
    for cell in genotype.cells.values():
        assert [source for _, source in cell.nodes[1]] == [2, 1], "the heavier edges, the heaviest first"


def test_a_search_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = run_epochs(make_search(tmp_path / "whole", *PC))
    first = make_search(tmp_path / "first", *PC)
    first.begin_epoch()
    for first.step_in_epoch in range(2):
        first.train_step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    second = make_search(tmp_path / "second", *PC)
    second.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert edge_norm(second).state_dict().keys() == {"normal", "reduce"}
    second.epoch = 1
    run_epochs(second)
    for a, b in zip(architecture(whole), architecture(second), strict=True):
        assert torch.equal(a, b)
    for v, w in zip(whole.weights, second.weights, strict=True):
        assert torch.equal(v, w)


def test_edge_weights_of_two_parts_multiply(tmp_path: Path) -> None:
    search = make_search(tmp_path, *PC)
    part, p = edge_norm(search), search.mean("evaluate")
    twice = part.edit_mixing(p, search.moment("evaluate"), generator=torch.Generator(), gradient=None)
    torch.testing.assert_close(twice["normal"].edge_LN, p["normal"].edge_LN.square())  # type: ignore[union-attr]


def test_top2_multiplies_edges_in() -> None:
    group = DartsSpace(3, 5, nodes=1, search_cells=1, reductions=0, operations=("none", "skip_connect")).groups[0]
    p = GroupMixing(torch.tensor([[[0.1, 0.9], [0.5, 0.5]]]), group.mask_NK, torch.tensor([[0.2, 0.8]]))
    assert strongest(p, group) == [(1, 1), (0, 1)]


def test_alpha_waits_for_its_share_of_the_stage() -> None:
    gate = WarmUp(WarmUpConfig(fraction=0.3))
    moves = [gate.alpha_moves(Moment("alpha", e, 0.9, e * 7 / (50 * 7))) for e in range(50)]
    assert moves == [False] * 15 + [True] * 35


def test_pc_darts_warms_up(tmp_path: Path) -> None:
    search = make_search(tmp_path, "method=pc_darts", "limit.epochs=2", "limit.steps=3")  # 0.3 * 6 steps are 1.8
    before, weight = architecture(search), search.weights[0].detach().clone()
    search.begin_epoch()
    for search.step_in_epoch in range(2):
        search.train_step()
    assert all(torch.equal(a, b) for a, b in zip(architecture(search), before, strict=True))
    assert not torch.equal(search.weights[0], weight)
    search.step_in_epoch = 2
    search.train_step()
    assert not any(torch.equal(a, b) for a, b in zip(architecture(search), before, strict=True)), "alpha and beta move"


def test_channels_that_do_not_divide_are_refused_by_the_search(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"search\.channels=4: .* multiple of 3"):
        make_search(tmp_path, "modifier=[partial_channels]", "modifier.partial_channels.parts=3")


def test_one_part_searches_like_the_plain_space(tmp_path: Path) -> None:
    plain = run_epochs(make_search(tmp_path / "plain"))
    one = run_epochs(make_search(tmp_path / "one", "modifier=[partial_channels]", "modifier.partial_channels.parts=1"))
    four = run_epochs(make_search(tmp_path / "four", "modifier=[partial_channels]"))
    assert all(torch.equal(a, b) for a, b in zip(architecture(plain), architecture(one), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(architecture(plain), architecture(four), strict=True))


def test_a_space_that_cannot_be_edited_says_so() -> None:
    class Other(SearchSpace):
        groups = ()

        def build_supernet(self) -> torch.nn.Module: ...

        def build_child(self, genotype: object) -> torch.nn.Module: ...

        def genotype(self, choices: object) -> object: ...

        def choices(self, genotype: object) -> dict[str, list[tuple[int, int]]]: ...

        def check(self, *args: object, **kwargs: object) -> None: ...

        def check_genotype(self, *args: object, **kwargs: object) -> None: ...

    with pytest.raises(UserError, match="modifier=partial_channels: a Other does not know partial"):
        edited(Other(), "partial_channels", partial=4)


def test_edge_norm_does_not_touch_p_itself(tmp_path: Path) -> None:
    search = make_search(tmp_path, *PC)
    plain = Mixing({n: GroupMixing(g.op_LNK, g.mask_NK) for n, g in search.mean("evaluate").items()})
    edited_p = edge_norm(search).edit_mixing(
        plain, search.moment("evaluate"), generator=torch.Generator(), gradient=None
    )
    assert all(edited_p[n].op_LNK is plain[n].op_LNK for n in plain)
