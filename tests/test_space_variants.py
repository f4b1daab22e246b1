"""S1 to S4 of RobustDARTS: operations per edge, noise, and what a search and its child make of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import make_search, run_epochs, tiny_config

from supernet.config import compose
from supernet.derive.random import random_genotype
from supernet.errors import UserError
from supernet.evaluate import eval_mode, predict
from supernet.search import Search
from supernet.spaces.darts import DartsSpace
from supernet.spaces.ops import OPERATIONS, Noise, Norm
from supernet.types import Batch, GroupMixing, Mixing

VARIANTS = ["s1", "s2", "s3", "s4"]


def search_of(variant: str, folder: Path, *overrides: str) -> Search:
    return make_search(folder, f"space={variant}", "space.nodes=4", *overrides)


def allowed(search: Search) -> dict[str, list[set[str]]]:
    return {
        g.name: [{name for name, here in zip(g.options, row, strict=True) if here} for row in g.mask_NK]
        for g in search.parts.space.groups
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_searches_within_its_operations_and_builds_its_child(variant: str, tmp_path: Path) -> None:
    search = run_epochs(search_of(variant, tmp_path, "limit.steps=2"))
    sets = allowed(search)
    p, genotype = search.derived()
    space = search.parts.space
    for kind, cell in genotype.cells.items():
        places = dict(zip(zip(space.groups[0].sources, space.groups[0].targets, strict=True), sets[kind], strict=True))
        for target, node in enumerate(cell.nodes, start=2):
            assert len(node) == 2
            assert all(op in places[source, target] - {"none"} for op, source in node)
        mask_NK = torch.tensor(
            [[name in row for name in search.parts.mixer.groups[kind].options] for row in sets[kind]]
        )
        assert not p[kind].op_LNK[0][~mask_NK].any()
        torch.testing.assert_close(p[kind].op_LNK.sum(-1), torch.ones(1, len(sets[kind])))
    child = space.build_child(genotype)
    assert torch.isfinite(child.eval()(torch.randn(2, 1, 8, 8))).all()


def test_the_spaces_are_those_of_the_paper() -> None:
    """Facts that the lists must have: two operations an edge, 14 edges, and the counts of the published table."""
    s1 = compose(["space=s1"]).space
    for rows in (s1.normal_edges, s1.reduce_edges):
        assert len(rows) == 14
        assert {len(set(row)) for row in rows} == {2}
    count = {
        kind: {name: sum(name in row for row in rows) for name in s1.operations}
        for kind, rows in (("normal", s1.normal_edges), ("reduce", s1.reduce_edges))
    }
    assert list(count["normal"].values()) == [2, 0, 12, 4, 6, 4]
    assert list(count["reduce"].values()) == [8, 6, 6, 1, 2, 5]
    operations = {variant: compose([f"space={variant}"]).space.operations for variant in VARIANTS[1:]}
    assert operations == {
        "s2": ["skip_connect", "sep_conv_3x3"],
        "s3": ["none", "skip_connect", "sep_conv_3x3"],
        "s4": ["noise", "sep_conv_3x3"],
    }


@pytest.mark.parametrize("engine", ["plain", "banked"])
def test_an_edge_has_no_more_modules_than_operations_and_computes_no_other(engine: str) -> None:
    rows = (("skip_connect",), ("skip_connect", "sep_conv_3x3"))
    both = {"nodes": 1, "operations": ("skip_connect", "sep_conv_3x3"), "reductions": 0, "search_channels": 2}
    space = DartsSpace(1, 3, search_cells=2, normal_edges=rows, engine=engine, **both)  # type: ignore[arg-type]
    torch.manual_seed(0)
    net = space.build_supernet()
    owners = {name.split(".ops.")[0].split("edges.")[1] for name, _ in net.named_parameters() if ".ops." in name}
    assert owners == {"1"}
    (group,) = space.groups
    assert group.mask_NK == ((True, False), (True, True))
    x_BCHW, op_LNK = torch.randn(2, 1, 6, 6), torch.rand(1, 2, 2)
    other_LNK = op_LNK.clone()
    other_LNK[0, 0, 1] += 5.0
    outputs = [net(x_BCHW, Mixing({"normal": GroupMixing(t, group.mask_NK)})) for t in (op_LNK, other_LNK)]
    assert torch.equal(outputs[0], outputs[1])
    other_LNK[0, 1, 1] += 5.0
    assert not torch.allclose(outputs[0], net(x_BCHW, Mixing({"normal": GroupMixing(other_LNK, group.mask_NK)})))


def test_random_genotypes_keep_to_the_operations_of_each_edge(tmp_path: Path) -> None:
    search = search_of("s1", tmp_path)
    sets, space = allowed(search), search.parts.space
    places = list(zip(space.groups[0].sources, space.groups[0].targets, strict=True))
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        for kind, cell in random_genotype(space, draw).cells.items():
            for target, node in enumerate(cell.nodes, start=2):
                assert all(op in sets[kind][places.index((source, target))] for op, source in node)


@pytest.mark.parametrize("stride", [1, 2])
def test_noise_is_standard_and_does_not_see_its_input(stride: int) -> None:
    noise = OPERATIONS["noise"].build(4, stride, Norm(affine=True, track=True))
    assert isinstance(noise, Noise)
    x_BCHW = 100 * torch.randn(32, 4, 15, 15)
    torch.manual_seed(1)
    first = noise(x_BCHW)
    torch.manual_seed(1)
    assert torch.equal(first, noise(-3 * x_BCHW))
    assert not torch.equal(first, noise(x_BCHW)), "every call draws anew"
    assert first.shape == (32, 4, -(-15 // stride), -(-15 // stride))
    assert first.mean().item() == pytest.approx(0.0, abs=0.05)
    assert first.var().item() == pytest.approx(1.0, abs=0.05)


def test_a_search_with_noise_repeats_and_so_does_its_evaluation(tmp_path: Path) -> None:
    def ran(folder: str) -> Search:
        search = make_search(tmp_path / folder, "space=s4", "space.nodes=1", "limit.steps=2")
        torch.manual_seed(len(folder))  # whatever happened before
        return run_epochs(search)

    first, second = ran("a"), ran("another")
    assert first.valid == second.valid
    assert all(torch.equal(v, w) for v, w in zip(first.weights, second.weights, strict=True))
    torch.manual_seed(5)
    assert first.evaluate() == first.valid, "an evaluation that is repeated after a resume says the same"


def test_an_evaluation_draws_anew_for_every_batch() -> None:
    noise = OPERATIONS["noise"].build(1, 1, Norm(affine=True, track=True))
    batches = [Batch(torch.zeros(2, 1, 1, 3), torch.zeros(2, dtype=torch.long))] * 2
    with eval_mode(noise):
        logits_BK, _ = predict(lambda x: noise(x).flatten(1), batches)
    assert not torch.equal(logits_BK[:2], logits_BK[2:])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["space=s1", "space.nodes=3"], r"normal_edges has 14 edges, and space.nodes=3 makes 9"),
        (["space.nodes=1", "space.reduce_edges=[[sep_conv_3x3],[sep_conv_3x4]]"], r"reduce_edges\[1\].*'sep_conv_3x3'"),
        (["space.nodes=1", "space.normal_edges=[[none],[skip_connect]]"], "an edge needs an operation other than none"),
        (["space.nodes=1", "space.normal_edges=[[],[skip_connect]]"], "an edge needs an operation other than none"),
        (["space.nodes=1", "space.normal_edges=[[none,none],[skip_connect]]"], "an edge has an operation once"),
    ],
)
def test_operations_that_no_edge_can_have_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_config(*overrides)
