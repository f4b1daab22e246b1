"""Derivations by argmax and by threshold, against the rules applied by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from supernet.derive.argmax import Argmax
from supernet.derive.threshold import Threshold
from supernet.derive.top2 import Top2
from supernet.errors import UserError
from supernet.schema.derivations import ArgmaxConfig, ThresholdConfig, Top2Config
from supernet.spaces.darts import DartsSpace
from supernet.spaces.genotype import Genotype
from supernet.spaces.nasbench201 import Nasbench201Space
from supernet.types import GroupMixing, Mixing

SPACE = DartsSpace(3, 10, child_channels=4, child_cells=3, auxiliary=False)
NB201 = Nasbench201Space(3, 10)


def mixing(space: DartsSpace | Nasbench201Space, p: dict[str, Tensor]) -> Mixing:
    return Mixing({group.name: GroupMixing(p[group.name], group.mask_NK) for group in space.groups})


def random_p(space: DartsSpace | Nasbench201Space, seed: int, power: float = 1.0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        group.name: torch.rand(1, group.decisions, len(group.options), generator=draw) ** power
        for group in space.groups
    }


def incoming(target: int) -> range:
    """The decisions that lead to a node of a DARTS cell."""
    before = sum(range(2, target))
    return range(before, before + target)


def works(space: DartsSpace, genotype: Genotype) -> bool:
    return bool(space.build_child(genotype).eval()(torch.randn(2, 3, 8, 8)).isfinite().all())


def test_argmax_keeps_every_edge_with_its_strongest_operation() -> None:
    p = random_p(SPACE, 0)
    genotype = Argmax(ArgmaxConfig()).derive(mixing(SPACE, p), SPACE)
    for kind, cell in genotype.cells.items():
        best_N = 1 + p[kind][0, :, 1:].argmax(dim=-1)
        for target, node in enumerate(cell.nodes, start=2):
            expected = {(SPACE.operations[best_N[n]], s) for s, n in enumerate(incoming(target))}
            assert set(node) == expected
    assert works(SPACE, genotype)


def test_argmax_writes_none_where_a_genotype_holds_it() -> None:
    p = random_p(NB201, 1)
    genotype = Argmax(ArgmaxConfig()).derive(mixing(NB201, p), NB201)
    (alpha,) = p.values()
    names = [NB201.operations[k] for k in alpha[0].argmax(dim=-1).tolist()]
    assert [op for cell in genotype.cells.values() for op, _ in sorted(cell.edges, key=lambda e: e[1])] != []
    (cell,) = genotype.cells.values()
    expected = [(t, s) for t in range(1, 4) for s in range(t)]
    written = {(t, s): op for t, node in enumerate(cell.nodes, start=1) for op, s in node}
    assert [written[edge] for edge in expected] == names
    assert "none" in names, "the case is one that shows it"


def test_argmax_leaves_out_the_edges_on_which_none_is_strongest_but_the_last_of_a_node() -> None:
    p = random_p(SPACE, 2)
    for t in p.values():
        t[..., 0] = 0.9  # stronger than most
        t[0, list(incoming(3)), 0] = 2.0  # than all
    genotype = Argmax(ArgmaxConfig(leave_out=True)).derive(mixing(SPACE, p), SPACE)
    for kind, cell in genotype.cells.items():
        best_N = p[kind][0, :, 1:].max(dim=-1).values
        for target, node in enumerate(cell.nodes, start=2):
            edges = list(incoming(target))
            strongest = max(edges, key=lambda n: float(best_N[n]))
            kept = {s for s, n in enumerate(edges) if best_N[n] >= p[kind][0, n, 0] or n == strongest}
            assert {s for _, s in node} == kept
        assert len(cell.nodes[1]) == 1, "node 3 keeps its strongest edge"
    assert works(SPACE, genotype)
    undecided = {name: torch.full_like(t, 0.125) for name, t in p.items()}
    whole = Argmax(ArgmaxConfig(leave_out=True)).derive(mixing(SPACE, undecided), SPACE)
    assert all(len(node) == t for cell in whole.cells.values() for t, node in enumerate(cell.nodes, start=2))


@pytest.mark.parametrize("seed", range(5))
def test_threshold_is_top2_cut_off(seed: int) -> None:
    """Where every node keeps an edge, the rule is the published one: two strongest edges, then the threshold."""
    p = random_p(SPACE, seed, power=0.4)
    top2 = Top2(Top2Config()).derive(mixing(SPACE, p), SPACE)
    genotype = Threshold(ThresholdConfig(threshold=0.97)).derive(mixing(SPACE, p), SPACE)
    cut = 0
    for kind, cell in genotype.cells.items():
        dead = {state for state, node in enumerate(cell.nodes, start=2) if not node}
        for target, node in enumerate(cell.nodes, start=2):
            if dead & set(range(2, target)):
                continue
            kept = []
            for op, s in top2.cells[kind].nodes[target - 2]:
                if p[kind][0, incoming(target)[s], SPACE.operations.index(op)] >= 0.97:
                    kept.append((op, s))
            cut += 2 - len(kept)
            assert list(node) == kept
    assert cut > 0, "the case is one that shows it"
    assert works(SPACE, genotype)


def test_a_node_without_an_edge_is_out_of_the_output_and_read_by_none() -> None:
    p = {name: torch.full_like(t, 0.1) for name, t in random_p(SPACE, 0).items()}
    for t in p.values():
        t[0, incoming(2)[0], 4] = 0.9
        t[0, incoming(4)[3], 5] = 0.99  # reads node 3, which has no input
        t[0, incoming(4)[2], 6] = 0.88
        t[0, incoming(5)[0], 0] = 0.99  # none is no candidate
    genotype = Threshold(ThresholdConfig()).derive(mixing(SPACE, p), SPACE)
    for cell in genotype.cells.values():
        assert cell.nodes == ((("sep_conv_3x3", 0),), (), (("dil_conv_3x3", 2),), ())
        assert cell.concat == (2, 4)
    assert works(SPACE, genotype)


def test_a_cell_in_which_nothing_passes_keeps_one_edge() -> None:
    p = {name: torch.full_like(t, 0.5) for name, t in random_p(SPACE, 0).items()}
    for t in p.values():
        t[0, incoming(5)[4], 3] = 0.8  # the strongest, but it reads a node without input
        t[0, incoming(4)[1], 3] = 0.7
    genotype = Threshold(ThresholdConfig()).derive(mixing(SPACE, p), SPACE)
    for cell in genotype.cells.values():
        assert (cell.edges, cell.concat) == ([("skip_connect", 1)], (4,))
    assert works(SPACE, genotype)


def test_threshold_needs_a_space_that_leaves_edges_out() -> None:
    with pytest.raises(UserError, match="derive=argmax"):
        Threshold(ThresholdConfig()).derive(mixing(NB201, random_p(NB201, 0)), NB201)
