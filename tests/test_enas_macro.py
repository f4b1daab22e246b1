"""The macro space of ENAS: what p does, the child of a genotype, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_space_config
from torch import Tensor, nn

from supernet.build import build_task
from supernet.child import load_child
from supernet.decisions import Decisions
from supernet.errors import UserError
from supernet.report.cell_layout import lay_out
from supernet.spaces.enas_macro import EnasMacroSpace
from supernet.spaces.enas_operations import EnasOperation
from supernet.spaces.enas_skeleton import pool_layers
from supernet.spaces.genotype import Genotype, load_genotype, parse_genotype
from supernet.spaces.ops import OPERATIONS, Norm
from supernet.train import retrain, train
from supernet.types import GroupMixing, Mixing

DEVICE = torch.device("cpu")


def space(layers: int = 5, **fields: object) -> EnasMacroSpace:
    """Small, with children that have the channels of the supernet."""
    sizes = {"search_channels": 4, "child_channels": 4, "search_cells": layers, "child_cells": layers}
    return EnasMacroSpace(2, 3, **(sizes | {"child_growth": 1} | fields))  # type: ignore[arg-type]


def drawn(of: EnasMacroSpace, seed: int) -> tuple[Genotype, Mixing]:
    decisions = Decisions(of)
    values = decisions.random(torch.Generator().manual_seed(seed))
    return decisions.genotype(values), decisions.mixing(values, DEVICE)


def copy_into(child: nn.Module, net: nn.Module, genotype: Genotype, of: EnasMacroSpace) -> None:
    """Give a child the weights of its place in the supernet."""
    state = net.state_dict()
    chosen = [of.operations.index(node[0][0]) for node in genotype.cells["macro"].nodes]
    names = {}
    for name in child.state_dict():
        parts = name.split(".")
        shared = [*parts[:4], "ops", str(chosen[int(parts[2])]), *parts[4:]] if parts[3:4] == ["op"] else parts
        names[name] = ".".join(shared)
    child.load_state_dict({name: state[shared] for name, shared in names.items()})


def dense(of: EnasMacroSpace, seed: int = 0) -> Mixing:
    draw = torch.Generator().manual_seed(seed)
    return Mixing(
        {
            g.name: GroupMixing(torch.rand(1, g.decisions, len(g.options), generator=draw).softmax(-1), g.mask_NK)
            for g in of.groups
        }
    )


@pytest.mark.parametrize("layers", [2, 3, 7])
def test_one_path_of_the_supernet_is_the_child(layers: int) -> None:
    of = space(layers, statistics="running")
    net, x = of.build_supernet(), torch.randn(4, 2, 9, 9)
    with torch.no_grad():
        net(x, dense(of))  # running statistics that are not those of a new norm
    for seed in range(4):
        genotype, p = drawn(of, seed)
        child = of.build_child(genotype)
        copy_into(child, net, genotype, of)
        torch.testing.assert_close(child.eval()(x), net.eval()(x, p))
        assert set(child.state_dict()) >= {"stack.stem.0.weight", "stack.classifier.bias"}


@pytest.mark.parametrize(("name", "kernel"), [("enas_conv_5x5", 5), ("enas_sep_conv_3x3", 3), ("enas_avg_pool_3x3", 0)])
def test_an_operation_is_the_published_branch(name: str, kernel: int) -> None:
    operation = OPERATIONS[name].build(4, 1, Norm(affine=True, track=False))
    assert isinstance(operation, EnasOperation)
    x = torch.randn(3, 4, 7, 7)
    weights = [p for p in operation.parameters() if p.dim() == 4]

    def normalised(y: Tensor) -> Tensor:
        return F.relu(
            (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        )

    y = normalised(F.conv2d(x, weights[0]))
    if kernel == 0:  # the mean over the pixels that there are
        pixels = F.avg_pool2d(torch.ones_like(y), 3, 1, padding=1)
        expected = F.avg_pool2d(y, 3, 1, padding=1) / pixels
    else:
        y = F.conv2d(y, weights[1], padding=kernel // 2, groups=4 if "sep" in name else 1)
        expected = normalised(F.conv2d(y, weights[2]) if "sep" in name else y)
    assert len(weights) == (1 if kernel == 0 else 3 if "sep" in name else 2)
    torch.testing.assert_close(operation(x), expected, rtol=1e-4, atol=1e-5)


def test_a_dense_p_is_the_weighted_sum() -> None:
    """Layer by layer from the modules: o is what a layer's operations give, x what its skips read."""
    of = space(3)
    net, x, p = of.build_supernet().eval(), torch.randn(4, 2, 8, 8), dense(of)
    stack, layer, skip = net.get_submodule("stack"), p["layer"].op_LNK[0], p["skip"].op_LNK[0]

    def mixed(n: int, read: Tensor) -> Tensor:
        ops = stack.get_submodule(f"layers.{n}.op").ops
        return sum((layer[n, k] * op(read) for k, op in enumerate(ops)), torch.zeros(()))

    def halved(level: int, state: int, value: Tensor) -> Tensor:
        return stack.get_submodule(f"reductions.{level}_{state}")(value)

    x0 = stack.get_submodule("stem")(x)
    x1 = mixed(0, x0)
    x0, x1 = halved(1, 0, x0), halved(1, 1, x1)
    x2 = stack.get_submodule("layers.1.norm")(mixed(1, x1) + skip[0, 1] * x0)
    x0, x1, x2 = halved(2, 0, x0), halved(2, 1, x1), halved(2, 2, x2)
    x3 = stack.get_submodule("layers.2.norm")(mixed(2, x2) + skip[1, 1] * x0 + skip[2, 1] * x1)
    expected = stack.get_submodule("classifier")(x3.mean(dim=(2, 3)))
    torch.testing.assert_close(net(x, p), expected)


def test_what_is_not_chosen_is_not_computed() -> None:
    of = space(4)
    net = of.build_supernet()
    genotype, p = drawn(of, 1)
    net(torch.randn(4, 2, 8, 8), p).sum().backward()
    trained = {name for name, w in net.named_parameters() if w.grad is not None}
    child = of.build_child(genotype)
    chosen = [of.operations.index(node[0][0]) for node in genotype.cells["macro"].nodes]
    wanted = {
        name.replace(".op.", f".op.ops.{chosen[int(name.split('.')[2])]}.", 1) if ".op." in name else name
        for name, _ in child.named_parameters()
    }
    assert trained == wanted, "operations, reductions of states that are read, norms: those of the child"


def test_the_published_numbers() -> None:
    of = EnasMacroSpace(3, 10)
    layer, skip = of.groups
    assert (layer.decisions, len(layer.options), skip.decisions) == (12, 6, 66)
    assert pool_layers(12) == (4, 8)
    assert [pool_layers(n) for n in (1, 2, 3, 5)] == [(), (), (1, 2), (1, 2)]
    assert [(v.kind, v.node, v.source) for v in Decisions(of).variables[:4]] == [
        ("op", 1, 0), ("op", 2, 1), ("skip", 2, 0), ("op", 3, 2),
    ]  # fmt: skip
    genotype, _ = drawn(of, 0)
    with torch.device("meta"):
        net, child = of.build_supernet(), of.build_child(genotype)
    assert {w.shape[0] for n, w in net.named_parameters() if ".op.ops.0.0." in n} == {36}
    assert [child.get_submodule(f"stack.layers.{n}.op.0").weight.shape[0] for n in (0, 4, 8)] == [36, 72, 144]
    assert child.get_submodule("stack.classifier").weight.shape == (10, 144)


def test_a_genotype_is_written_and_read_back() -> None:
    of = space(6)
    decisions = Decisions(of)
    for seed in range(20):
        genotype, _ = drawn(of, seed)
        of.check_genotype(genotype)
        assert Genotype.from_json(json.loads(json.dumps(genotype.to_json()))) == genotype
        assert parse_genotype(str(genotype)) == {"genotype": genotype}
        assert decisions.genotype(decisions.values(genotype)) == genotype
        assert lay_out(genotype.cells["macro"]).boxes


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("DARTS_V1", "no network of the ENAS macro space"),
        ("[[('enas_conv_3x3', 0)], [('enas_conv_3x3', 0)]]", r"layer 2 reads \[0\]; first comes .* on state 1"),
        ("[[('enas_conv_3x3', 0)], [('enas_conv_3x3', 1), ('enas_conv_3x3', 0)]]", "layer 2 has an operation on an"),
        ("[[('enas_conv_3x3', 0)], [('skip_connect', 0), ('enas_conv_3x3', 1)]]", r"layer 2 reads \[0, 1\]"),
        ("[[('enas_conv_3x3', 0)], [('enas_conv_3', 1)]]", "did you mean 'enas_conv_3x3'"),
        ("[[('enas_conv_3x3', 0)], [('enas_conv_3x3', 1)], [('enas_conv_3x3', 2)]]", "3 layers, and retrain.cells=2"),
        ("[[('enas_conv_3x3', 0)], []]", r"layer 2 reads \[\]"),
    ],
)
def test_what_is_no_macro_network_is_named(written: str, said: str) -> None:
    if written.startswith("["):
        count = written.count("]") - 1
        genotype = parse_genotype(f"Genotype(macro={written}, macro_concat=[{count}], macro_inputs=1)")["genotype"]
    else:
        genotype = load_genotype(written)
    with pytest.raises(UserError, match=said):
        space(2).check_genotype(genotype)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["search.cells=4", "retrain.cells=5"], r"search\.cells=4, retrain\.cells=5: .* set both to the same number"),
        (["search.cells=1", "retrain.cells=1"], r"retrain\.cells=1: .* at least 2"),
        (["retrain.auxiliary_weight=0.4"], "auxiliary_weight must be 0"),
        (["space.operations=[none,enas_conv_3x3]"], "leave none out"),
        (["space.operations=[enas_conv_3]"], "did you mean 'enas_conv_3x3'"),
    ],
)
def test_what_contradicts_itself_is_refused(overrides: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        train(tiny_space_config("enas_macro", "limit.cells=null", *overrides), tmp_path)


def test_drop_path_spares_layers_that_nothing_goes_past() -> None:
    of = space(3)
    torch.manual_seed(0)
    lines = {"skip": [(0, 0), (1, 0), (2, 0)], "layer": [(n, 0) for n in range(3)]}
    x = torch.randn(4, 2, 8, 8)
    plain = of.build_child(of.genotype(lines))
    plain.get_submodule("stack").dropout = 0.0
    assert torch.equal(plain(x, drop_path=0.9), plain(x))
    skipping = of.build_child(of.genotype(lines | {"skip": [(0, 1), (1, 0), (2, 0)]}))
    skipping.get_submodule("stack").dropout = 0.0
    assert not torch.equal(skipping(x, drop_path=0.9), skipping(x))


def test_a_run_from_end_to_end_and_its_child_again(tmp_path: Path) -> None:
    config = tiny_space_config("enas_macro", "method=darts")
    report = train(config, tmp_path / "whole")
    assert (tmp_path / "whole" / "macro.svg").exists()
    again = tiny_space_config("enas_macro", f"genotype={tmp_path}/whole/genotype.json")
    assert retrain(again, tmp_path / "again")["child"]["test"] == report["child"]["test"]
    child = load_child(tmp_path / "whole")
    assert child.spec.genotype.to_json() == report["genotype"]
    x, y = next(iter(build_task(config).test_loader(config, DEVICE).epoch(0)))
    assert child(x).shape == (len(y), 10)
