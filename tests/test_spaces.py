"""The DARTS space: published counts, shapes for any image, what p does, and what a derivation picks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from supernet.derive.top2 import Top2, strongest
from supernet.errors import UserError
from supernet.schema.derivations import Top2Config
from supernet.spaces.cell import drop_samples
from supernet.spaces.darts import DartsSpace
from supernet.spaces.genotype import load_genotype
from supernet.spaces.ops import DARTS_OPERATIONS, OPERATIONS, Norm, register_operation
from supernet.types import Group, GroupMixing, Mixing


def uniform(space: DartsSpace) -> Mixing:
    return Mixing(
        {
            g.name: GroupMixing(torch.full((1, g.decisions, len(g.options)), 1 / len(g.options)), g.mask_NK)
            for g in space.groups
        }
    )


@pytest.mark.parametrize(
    ("name", "params", "macs"), [("DARTS_V1", 3_169_414, 500_987_520), ("DARTS_V2", 3_349_342, 528_359_040)]
)
def test_published_children_have_the_published_counts(name: str, params: int, macs: int) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        child = DartsSpace(3, 10, auxiliary=False).build_child(load_genotype(name)).eval()
        child(torch.empty(1, 3, 32, 32))
    assert sum(p.numel() for p in child.parameters()) == params
    assert counter.get_total_flops() == 2 * macs


@pytest.mark.parametrize("name", DARTS_OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 8])
def test_every_operation_keeps_channels_and_divides_the_image(name: str, stride: int, size: int) -> None:
    module = OPERATIONS[name].build(5, stride, Norm(affine=True, track=True))
    expected = -(-size // stride)
    assert module(torch.randn(2, 5, size, size)).shape == (2, 5, expected, expected)


@pytest.mark.parametrize(
    ("channels", "size", "cells", "nodes", "reductions"),
    [(1, 8, 5, 4, 2), (3, 32, 3, 2, 2), (3, 9, 4, 1, 1), (2, 5, 1, 3, 0), (3, 64, 6, 2, 3)],
)
def test_supernet_and_child_take_any_image_and_depth(
    channels: int, size: int, cells: int, nodes: int, reductions: int
) -> None:
    space = DartsSpace(
        channels, 7, nodes=nodes, reductions=reductions, search_channels=2, search_cells=cells, child_channels=3,
        child_cells=cells,
    )  # fmt: skip
    p, x = uniform(space), torch.randn(2, channels, size, size)
    assert space.build_supernet()(x, p).shape == (2, 7)
    child = space.build_child(Top2(Top2Config()).derive(p, space))
    logits, auxiliary = child(x, drop_path=0.2)
    assert logits.shape == auxiliary.shape == (2, 7)
    assert child.eval()(x).shape == (2, 7)


def test_p_decides_what_the_supernet_computes() -> None:
    space = DartsSpace(1, 3, nodes=2, search_channels=2, search_cells=3)
    torch.manual_seed(0)
    net, x, p = space.build_supernet(), torch.randn(4, 1, 8, 8), uniform(space)
    none = DARTS_OPERATIONS.index("none")
    more = p.map(lambda t: t + torch.eye(8)[none])
    assert torch.equal(net(x, p), net(x, more)), "none contributes exactly nothing"
    more = p.map(lambda t: t + torch.eye(8)[none + 1])
    assert not torch.allclose(net(x, p), net(x, more))


def test_sampled_operations_alone_are_computed_and_get_gradients() -> None:
    space = DartsSpace(1, 3, nodes=2, search_channels=2, search_cells=3)
    net = space.build_supernet()
    k = DARTS_OPERATIONS.index("sep_conv_3x3")
    groups = {}
    for g in space.groups:
        one_hot = torch.zeros(1, g.decisions, 8)
        one_hot[:, :, k] = 1.0
        groups[g.name] = GroupMixing(one_hot, g.mask_NK, active_LN=((k,) * g.decisions,))
    net(torch.randn(4, 1, 8, 8), Mixing(groups)).sum().backward()
    for name, parameter in net.named_parameters():
        if ".ops." in name:
            assert (parameter.grad is not None) == (f".ops.{k}." in name), name


def test_a_node_with_nothing_but_none_is_zero() -> None:
    space = DartsSpace(1, 3, nodes=2, search_channels=2, search_cells=3)
    net = space.build_supernet()
    groups = {
        g.name: GroupMixing(torch.ones(1, g.decisions, 8), g.mask_NK, active_LN=((0,) * g.decisions,))
        for g in space.groups
    }
    logits = net(torch.randn(2, 1, 8, 8), Mixing(groups))
    assert torch.allclose(logits, net.stack.classifier.bias.expand(2, 3))


def test_drop_path_zeroes_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    y = drop_samples(torch.ones(20_000, 2, 2, 2), 0.3)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert (y.flatten(1) == y[:, :1, 0, 0]).all()
    assert float(y.mean()) == pytest.approx(1.0, abs=0.02)


def group(options: tuple[str, ...], keep: int | None = 2) -> Group:
    edges = [(s, t) for t in (2, 3) for s in range(t)]
    sources, targets = zip(*edges, strict=True)
    return Group("normal", options, sources, targets, 1, ((True,) * len(options),) * 5, keep, frozenset({"none"}))


def test_top2_keeps_the_strongest_edges_by_their_strongest_operation_other_than_none() -> None:
    rows = [[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.1, 0.2, 0.7], [0.1, 0.8, 0.1], [0.6, 0.25, 0.15]]
    g = group(("none", "a", "b"))
    p = GroupMixing(torch.tensor([rows]), g.mask_NK)
    # node 2: edges 0 and 1, stronger first; node 3: edges 3 (a, .8), 2 (b, .7); edge 4 is mostly none
    assert strongest(p, g) == [(1, 2), (0, 1), (3, 1), (2, 2)]


def test_top2_weighs_edges_by_their_own_weight_and_respects_masks() -> None:
    g = group(("none", "a", "b"))
    op_LNK = torch.full((1, 5, 3), 1 / 3)
    edge_LN = torch.tensor([[1.0, 1.0, 0.1, 0.2, 0.3]])
    assert [n for n, _ in strongest(GroupMixing(op_LNK, g.mask_NK, edge_LN), g)] == [0, 1, 4, 3]
    masked = Group(**{**vars(g), "mask_NK": ((True, False, True),) * 5})
    assert {k for _, k in strongest(GroupMixing(op_LNK, masked.mask_NK), masked)} == {2}


def test_an_unknown_operation_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'sep_conv_3x3'"):
        DartsSpace(3, 10, operations=("sep_conv_3x4",))


def test_a_users_operation_joins_the_space() -> None:
    register_operation("test_conv", lambda channels, stride, norm: nn.Conv2d(channels, channels, 1, stride))
    try:
        space = DartsSpace(1, 3, nodes=1, operations=("skip_connect", "test_conv"), search_channels=2, search_cells=3)
        net, p = space.build_supernet(), uniform(space)
        net(torch.randn(2, 1, 8, 8), p).sum().backward()
        assert all(w.grad is not None for name, w in net.named_parameters() if ".ops.1." in name)
    finally:
        del OPERATIONS["test_conv"]
