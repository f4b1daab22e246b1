"""Chains: what p does to depth, width, kernel, activation, pool, initialisation and connection; the child; refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_space_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from supernet.build import build_task
from supernet.child import load_child
from supernet.decisions import Decisions
from supernet.errors import UserError
from supernet.report.drawing import pictures
from supernet.spaces.chain import ChainSpace
from supernet.spaces.chain_genotype import read_chain
from supernet.spaces.chain_net import ChosenLayer, MixedLayer
from supernet.spaces.chain_options import ACTIVATIONS, INITS, fit, pool
from supernet.spaces.genotype import Genotype, load_genotype, parse_genotype
from supernet.train import retrain, train
from supernet.types import GroupMixing, Mixing

DEVICE = torch.device("cpu")


def space(**fields: object) -> ChainSpace:
    sizes = {"search_channels": 4, "child_channels": 4, "search_cells": 2, "child_cells": 2}
    return ChainSpace(2, 3, **(sizes | fields))  # type: ignore[arg-type]


def drawn(of: ChainSpace, seed: int) -> tuple[Genotype, Mixing]:
    decisions = Decisions(of)
    values = decisions.random(torch.Generator().manual_seed(seed))
    return decisions.genotype(values), decisions.mixing(values, DEVICE)


def dense(of: ChainSpace) -> Mixing:
    draw = torch.Generator().manual_seed(0)
    return Mixing(
        {
            g.name: GroupMixing(torch.rand(1, g.decisions, len(g.options), generator=draw).softmax(-1), g.mask_NK)
            for g in of.groups
        }
    )


def copy_into(child: nn.Module, net: nn.Module, genotype: Genotype, of: ChainSpace) -> None:
    """Give a child its slice of the supernet's weights and statistics."""
    chosen = [m for m in child.modules() if isinstance(m, ChosenLayer)]
    stages = read_chain(genotype)
    mixed = [net.get_submodule(f"stages.{s}.{i}") for s, stage in enumerate(stages) for i in range(len(stage.layers))]
    with torch.no_grad():
        for layer, shared in zip(chosen, mixed, strict=True):
            assert isinstance(shared, MixedLayer)
            out, into, size, _ = layer.conv.weight.shape
            margin = (of.kernels[-1] - size) // 2
            weight = shared.weights[of.inits.index(layer.layer.init)]
            layer.conv.weight.copy_(weight[:out, :into, margin : margin + size, margin : margin + size])
            layer.norm.running_mean.copy_(shared.norm.running_mean[:out])
            layer.norm.running_var.copy_(shared.norm.running_var[:out])
        classifier, whole = child.get_submodule("classifier"), net.get_submodule("classifier")
        classifier.weight.copy_(whole.weight[:, : classifier.weight.shape[1]])
        classifier.bias.copy_(whole.bias)


@pytest.mark.parametrize("scope", ["layer", "stage", "network"])
def test_one_path_of_the_supernet_is_the_child(scope: str) -> None:
    of = space(statistics="running", scope=scope)
    net, x = of.build_supernet(), torch.randn(4, 2, 9, 9)
    with torch.no_grad():
        net(x, dense(of))  # statistics that are not those of a new norm
    for seed in range(12):
        genotype, p = drawn(of, seed)
        child = of.build_child(genotype)
        copy_into(child, net, genotype, of)
        torch.testing.assert_close(child.eval()(x), net.eval()(x, p))
        torch.testing.assert_close(child.train()(x), net.train()(x, p))


def test_a_dense_p_is_the_weighted_sum() -> None:
    """Option by option: convolutions with cropped kernels and cut outputs, not masks."""
    of = space(search_cells=2, depths=(1, 2), inits=("orthogonal", "xavier_normal"))
    net, x, p = of.build_supernet(), torch.randn(4, 2, 8, 8), dense(of)
    share = {kind: group.op_LNK[0] for kind, group in p.items()}

    def layer(s: int, i: int, x: Tensor) -> Tensor:
        n, module = of.decision(s, i), net.get_submodule(f"stages.{s}.{i}")
        assert isinstance(module, MixedLayer)
        pools = [(share["pool"][0, k], name) for k, name in enumerate(of.pools)] if s and not i else [(1.0, None)]
        z: Tensor | float = 0.0
        for weight, init in zip(module.weights, share["init"][n], strict=True):
            for size, kernel in zip(of.kernels, share["kernel"][n], strict=True):
                margin = (5 - size) // 2
                cropped = weight[:, :, margin : margin + size, margin : margin + size]
                for q, name in pools:
                    read, stride = (pool(name, x), 1) if name in ("max", "avg") else (x, 2 if name else 1)
                    z = z + init * kernel * q * F.conv2d(read, cropped, stride=stride, padding=size // 2)
        assert isinstance(z, Tensor)
        z = F.batch_norm(z, None, None, training=True)
        y = sum(q * ACTIVATIONS[a](z) for q, a in zip(share["activation"][n], of.activations, strict=True))
        past = sum(q * pool(name, x) if name else x for q, name in pools)
        assert isinstance(y, Tensor) and isinstance(past, Tensor)
        y = share["connection"][n, 0] * y + share["connection"][n, 1] * (y + fit(past, y.shape[1]))
        widths = module.choices.widths
        return sum((q * fit(y[:, :w], widths[-1]) for q, w in zip(share["width"][n], widths, strict=True)), 0 * y)

    h = x
    for s in range(2):
        one = layer(s, 0, h)
        h = share["depth"][s, 0] * one + share["depth"][s, 1] * layer(s, 1, one)
    torch.testing.assert_close(net(x, p), net.get_submodule("classifier")(h.mean(dim=(2, 3))))


def test_what_is_not_chosen_gets_no_gradient() -> None:
    of = space(depths=(1, 2), widths=(0.5, 1.0))
    net = of.build_supernet()
    low = {v.name: 0 for v in Decisions(of).variables}  # one layer, half the channels, the smallest kernel
    values = tuple(low.values())
    net(torch.randn(4, 2, 8, 8), Decisions(of).mixing(values, DEVICE)).square().sum().backward()
    first = net.get_submodule("stages.0.0")
    assert isinstance(first, MixedLayer)
    chosen, *others = first.weights
    assert chosen.grad is not None
    assert all(w.grad is None for w in others)
    assert chosen.grad[:2, :, 1:4, 1:4].abs().min() > 0
    assert not chosen.grad[2:].any()
    assert not chosen.grad[:, :, 0].any() and not chosen.grad[..., 4].any()
    assert all(w.grad is None for w in net.get_submodule("stages.0.1").parameters()), "beyond the depth"


def test_every_decision_of_a_dense_p_has_a_gradient() -> None:
    of = space()
    torch.manual_seed(0)
    p = dense(of).leaf()
    of.build_supernet()(torch.randn(4, 2, 8, 8), p).square().sum().backward()
    for name, group in p.items():
        assert group.op_LNK.grad is not None
        assert (group.op_LNK.grad.abs().amax(dim=(0, 2)) > 0).all(), name


def test_initialisations_act_in_supernet_and_child() -> None:
    of = space(depths=(1,), kernels=(3,), widths=(1.0,), inits=tuple(INITS), search_cells=1, child_cells=1)
    torch.manual_seed(0)
    layer = of.build_supernet().get_submodule("stages.0.0")
    assert isinstance(layer, MixedLayer)
    rows = layer.weights[of.inits.index("orthogonal")].flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(4))
    seen = {}
    for seed in range(30):
        genotype, _ = drawn(of, seed)
        torch.manual_seed(0)
        (chosen,) = (m for m in of.build_child(genotype).modules() if isinstance(m, ChosenLayer))
        seen[chosen.layer.init] = chosen.conv.weight.detach().flatten()
    assert set(seen) == set(INITS)
    assert len({tuple(w.tolist()) for w in seen.values()}) == len(INITS)


def test_equal_chains_are_equal_genotypes() -> None:
    of = space()
    decisions = Decisions(of)
    places = {v.name: i for i, v in enumerate(decisions.variables)}
    values = [0] * len(places)
    other = list(values)
    other[places["kernel/1.2"]] = 1  # beyond the depth of 1
    assert decisions.genotype(values) == decisions.genotype(other)
    assert decisions.canonical(other) == tuple(values)
    other[places["kernel/1.1"]] = 1
    assert decisions.genotype(values) != decisions.genotype(other)
    ordered = {v.kind for v in decisions.variables if v.ordered}
    assert ordered == {"depth", "width", "kernel"}


@pytest.mark.parametrize("scope", ["layer", "stage", "network"])
def test_a_genotype_is_written_and_read_back(scope: str) -> None:
    of = space(scope=scope)
    decisions = Decisions(of)
    for seed in range(20):
        genotype, _ = drawn(of, seed)
        of.check_genotype(genotype)
        assert Genotype.from_json(json.loads(json.dumps(genotype.to_json()))) == genotype
        assert parse_genotype(json.dumps(genotype.to_json())) == {"genotype": genotype}
        assert parse_genotype(str(genotype)) == {"genotype": genotype}
        assert decisions.genotype(decisions.values(genotype)) == genotype
        ((_, layout),) = pictures(genotype).values()
        layers = sum(len(stage.layers) for stage in read_chain(genotype))
        residual = list(genotype.choices.values()).count("residual")
        assert len(layout.curves) == layers + 1 + residual
        for a in layout.boxes:
            assert a.x >= 0 and a.x + a.width <= layout.width and a.y >= 0 and a.y + a.height <= layout.height
            for b in layout.boxes:
                apart = a.x + a.width <= b.x or b.x + b.width <= a.x or a.y + a.height <= b.y or b.y + b.height <= a.y
                assert a is b or apart


LAYER = {"width/1.1": "0.5", "kernel/1.1": "3", "activation/1.1": "relu", "init/1.1": "orthogonal"}
WHOLE = {"depth/1": "1", **LAYER, "connection/1.1": "plain"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depth/1": "0"}, r"depth/1='0': it must be a whole number from 1 to 100"),
        ({"depth/1": "2"}, r"the choice kernel/1\.2 is missing|the choice width/1\.2 is missing"),
        ({"depth/1": "9" * 99}, "whole number"),
        ({"kernel/1.1": "4"}, "an odd size"),
        ({"width/1.1": "0.50"}, "a number such as 0.5"),
        ({"width/1.1": "nan"}, "a number such as 0.5"),
        ({"activation/1.1": "rely"}, "did you mean 'relu'"),
        ({"pool/1": "max"}, "'pool/1' is none of the choices of its 1 stages"),
        ({"depth/3": "1"}, "'depth/3' is none"),
    ],
)
def test_what_is_no_chain_is_named(changes: dict[str, str], said: str) -> None:
    of = space(search_cells=1, child_cells=1)
    of.check_genotype(Genotype({}, WHOLE))
    with pytest.raises(UserError, match=said):
        of.check_genotype(Genotype({}, WHOLE | changes))


def test_a_chain_is_no_cell_and_a_cell_no_chain() -> None:
    with pytest.raises(UserError, match="it is no chain"):
        space().check_genotype(load_genotype("DARTS_V1"))
    with pytest.raises(UserError, match=r"1 stages, and retrain\.cells=2"):
        space().check_genotype(Genotype({}, WHOLE))
    with pytest.raises(UserError, match="it has choices of a chain"):
        from supernet.spaces.darts import DartsSpace

        DartsSpace(1, 2).check_genotype(Genotype({}, WHOLE))
    with pytest.raises(UserError, match=r"cannot be chosen"):
        Decisions(space(kernels=(5, 7), search_cells=1, child_cells=1)).values(Genotype({}, WHOLE))


keys = st.sampled_from([*WHOLE, "depth/2", "pool/2", "pool/1", "", "width/1", "\n"])


@settings(deadline=None)
@given(st.dictionaries(keys, st.sampled_from([*WHOLE.values(), "2", "", "\0", "1e9", "٣"]) | st.text(max_size=4)))
def test_any_choices_are_read_or_refused(choices: dict[str, str]) -> None:
    for document in ({"choices": choices}, {"choices": WHOLE | choices}):
        try:
            genotype = Genotype.from_json(document)
            stages = read_chain(genotype)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        assert len(stages) >= 1
        ChainSpace(1, 2, child_cells=len(stages), child_channels=1).check_genotype(genotype)


@pytest.mark.parametrize("written", ["7", "{}", "{'a': 1}", "{1: 'a'}", "['a']", "{**{}}"])
def test_choices_that_are_no_texts_are_refused(written: str) -> None:
    with pytest.raises(UserError):
        parse_genotype(f"Genotype(choices={written})")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["search.cells=2", "retrain.cells=3", "limit.cells=null"], r"search\.cells=2, retrain\.cells=3: .* the same"),
        (["retrain.auxiliary_weight=0.4"], "auxiliary_weight must be 0"),
        (["space.kernels=[3,4]"], "4 is even"),
        (["space.kernels=[33]"], "33 is too large"),
        (["space.widths=[0.3,0.31]"], r"channels=4: space\.widths 0\.3 and 0\.31 of it are both 1"),
        (["space.widths=[0.33333]"], "round it"),
        (["space.activations=[rely]"], "did you mean 'relu'"),
        (["space.connections=[plain]", "retrain.drop_path=0.1"], r"retrain\.drop_path=0\.1 would do nothing"),
        (["method=gdas"], "does not go with space=chain: a drawn option"),
    ],
)
def test_what_contradicts_itself_is_refused(overrides: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        train(tiny_space_config("chain", *overrides), tmp_path)


def test_drop_path_drops_what_a_residual_connection_goes_past() -> None:
    of = space(search_cells=1, child_cells=1)
    x = torch.randn(4, 2, 8, 8)
    plain = of.build_child(Genotype({}, WHOLE))
    assert torch.equal(plain(x, drop_path=0.9), plain(x))
    residual = of.build_child(Genotype({}, WHOLE | {"connection/1.1": "residual"}))
    torch.manual_seed(0)
    assert not torch.equal(residual(x, drop_path=0.9), residual(x))


def test_a_run_from_end_to_end_and_its_child_again(tmp_path: Path) -> None:
    config = tiny_space_config("chain", "method=spos", "limit.cells=2")
    report = train(config, tmp_path / "whole")
    assert (tmp_path / "whole" / "chain.svg").exists()
    assert "](chain.svg)" in (tmp_path / "whole" / "report.md").read_text()
    again = tiny_space_config("chain", f"genotype={tmp_path}/whole/genotype.json", "limit.cells=2")
    assert retrain(again, tmp_path / "again")["child"]["test"] == report["child"]["test"]
    child = load_child(tmp_path / "whole")
    assert child.spec.genotype.to_json() == report["genotype"]
    x, y = next(iter(build_task(config).test_loader(config, DEVICE).epoch(0)))
    assert child(x).shape == (len(y), 10)
