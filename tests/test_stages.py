"""Stages of a search: each has its masks, network and schedule, and goes on bit for bit after an interruption."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import make_search, run_epochs, tiny_config

from supernet.config.check import check_together
from supernet.errors import UserError
from supernet.interfaces import SearchSpace, StageModifier
from supernet.loop import run_epoch
from supernet.registry import PARTS, register
from supernet.runtime.signals import Interrupted
from supernet.search import Search
from supernet.spaces.darts import DartsSpace
from supernet.stages import carry_over, channel_index, strongest, widened
from supernet.types import Group, GroupMixing, Mask, Mixing

SHRINK = (
    "modifier=[progressive_shrinking]", "modifier.progressive_shrinking.depth=[1.34,1.67]", "limit.epochs=6",
    "limit.steps=2", "search.lr_min=0.001", "space.reductions=1", "limit.cells=3", "search.alpha.lr=0.1",
)  # fmt: skip
WIDEN = ("modifier=[partial_channels,prune_widen]", "limit.epochs=2", "space.reductions=1")


def kept(search: Search) -> set[int]:
    return {sum(row) for group in search.parts.mixer.groups.values() for row in group.mask_NK}


def test_every_stage_has_its_masks_its_depth_its_schedule_and_its_own_weights(tmp_path: Path) -> None:
    search = make_search(tmp_path, *SHRINK)
    seen = []
    for epoch in range(6):
        p = {name: alpha.detach().softmax(dim=-1)[0] for name, alpha in search.parts.mixer.values().items()}
        masks = {name: group.mask_NK for name, group in search.parts.mixer.groups.items()}
        alphas, weights = list(search.parts.architecture), search.weights
        search.begin_epoch()
        moment = search.moment("weights")
        seen.append((moment.stage, moment.stage_progress, search.weight_optimizer.param_groups[0]["lr"]))
        if epoch in (2, 4):
            assert search.weights is not weights
            assert not search.parts.update.state_dict()["state"], "alpha's optimiser begins anew"
            assert all(not a.any() for a in search.parts.mixer.values().values())
            for name, group in search.parts.mixer.groups.items():
                for n, row in enumerate(group.mask_NK):
                    there = [k for k, here in enumerate(masks[name][n]) if here]
                    best = sorted(there, key=lambda k: -float(p[name][n, k]))[: sum(row)]
                    assert {k for k, here in enumerate(row) if here} == set(best)
        assert all(a is b for a, b in zip(alphas, search.parts.architecture, strict=True))
        assert kept(search) == {(8, 5, 3)[epoch // 2]}
        assert len(search.parts.net.get_submodule("stack.cells")._modules) == (3, 4, 5)[epoch // 2]
        run_epoch(search)
    half = 0.001 + 0.024 / 2
    assert seen == [(s, t, lr) for s in range(3) for t, lr in ((0.0, 0.025), (0.5, pytest.approx(half)))]
    genotype = search.derived()[1]
    for name, cell in genotype.cells.items():
        group = search.parts.mixer.groups[name]
        allowed = {group.options[k] for row in group.mask_NK for k, here in enumerate(row) if here}
        assert {operation for operation, _ in cell.edges} <= allowed


def final(search: Search) -> dict[str, Any]:
    """All of a search's state, with tensors as bytes."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value

    return {**plain(search.state_dict()), "valid": search.valid}


def through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("overrides", [SHRINK, WIDEN], ids=["shrink", "widen"])
def test_a_resume_in_any_stage_is_bit_for_bit(overrides: tuple[str, ...], tmp_path: Path) -> None:
    overrides = (*overrides, "limit.epochs=3" if overrides is SHRINK else "limit.epochs=2")
    whole = run_epochs(make_search(tmp_path / "whole", *overrides))
    search = make_search(tmp_path / "0", *overrides)
    stages = set()
    for stop in range(1, 2 * search.epochs):  # every step, and the ends of epochs between them
        step = search.train_step
        original = search.step

        def train_step(search: Search = search, step: Any = step, original: int = original) -> None:
            step()
            if search.step == original:
                search.services.interrupt.requested = signal.SIGTERM

        search.train_step = train_step  # type: ignore[method-assign]
        with suppress(Interrupted):
            run_epochs(search)
        stages.add(search.stage)
        state = through_a_file({"parts": search.state_dict(), "position": search.position()})
        search = make_search(tmp_path / str(stop), *overrides)
        search.load_state_dict(state["parts"])
        search.set_position(state["position"])
    run_epochs(search)
    assert stages == set(range(len(whole.begins)))
    assert final(search) == final(whole)
    assert str(search.derived()[1]) == str(whole.derived()[1])


@dataclass
class OnlyPruneConfig:
    """A part of this test."""

    name: str = "only_prune"


class OnlyPrune(StageModifier):
    """Three operations an edge in the second half, and the same network."""

    starts = (0.5,)

    def __init__(self, config: OnlyPruneConfig) -> None:
        pass

    def stage_space(self, space: SearchSpace, stage: int) -> SearchSpace:
        return space

    def stage_masks(self, p: Mixing, groups: Mapping[str, Group], stage: int) -> dict[str, Mask]:
        return {name: strongest(p[name], group, 3) for name, group in groups.items()}


@pytest.fixture
def only_prune() -> Iterator[None]:
    register("modifier", "only_prune", OnlyPruneConfig, OnlyPrune)
    from supernet.config.store import store_parts

    store_parts()
    yield
    PARTS.pop(("modifier", "only_prune"))


@pytest.mark.usefixtures("only_prune")
def test_pruning_alone_is_the_same_network_with_p_shared_out_anew(tmp_path: Path) -> None:
    search = make_search(tmp_path, "modifier=[only_prune]", "limit.epochs=2", "search.alpha.lr=0.3")
    run_epoch(search)
    net, weights, optimizer = search.parts.net, [w.detach().clone() for w in search.weights], search.weight_optimizer
    before = search.mean("evaluate")
    search.begin_epoch()
    assert search.parts.net is net and search.weight_optimizer is optimizer
    assert all(torch.equal(a, b) for a, b in zip(weights, search.weights, strict=True))
    assert search.parts.update.state_dict()["state"], "alpha's optimiser goes on"
    after = search.mean("evaluate")
    renormalised = {}
    for name, group in before.items():
        here_NK = torch.tensor(after[name].mask_NK)
        op_LNK = group.op_LNK * here_NK
        renormalised[name] = replace(group, op_LNK=op_LNK / op_LNK.sum(dim=-1, keepdim=True))
        torch.testing.assert_close(after[name].op_LNK, renormalised[name].op_LNK)
    x_BCHW = torch.randn(8, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(net(x_BCHW, after), net(x_BCHW, Mixing(renormalised)))


def space(partial: int) -> DartsSpace:
    return DartsSpace(
        1, 4, nodes=2, search_channels=8, search_cells=3, partial=partial, statistics="running", engine="plain"
    )


def trained(partial: int) -> tuple[torch.nn.Module, torch.optim.SGD]:
    net = space(partial).build_supernet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    p = uniform(space(partial))
    F.cross_entropy(net(torch.randn(8, 1, 8, 8), p), torch.arange(8) % 4).backward()
    optimizer.step()
    return net, optimizer


def uniform(description: DartsSpace) -> Mixing:
    return Mixing(
        {
            g.name: GroupMixing(torch.full((1, g.decisions, len(g.options)), 1 / len(g.options)), g.mask_NK)
            for g in description.groups
        }
    )


@pytest.mark.parametrize("after", [4, 2, 1])
def test_carried_over_are_weights_buffers_and_momentum(after: int) -> None:
    torch.manual_seed(0)
    (old, old_optimizer), (new, new_optimizer) = trained(4), (space(after).build_supernet(), None)
    new_optimizer = torch.optim.SGD(new.parameters(), lr=0.1, momentum=0.9)
    carry_over(old, new, (old_optimizer, new_optimizer), seed=0, stage=1)
    values, weights = old.state_dict(), dict(old.named_parameters())
    widened_ones = 0
    for name, value in new.state_dict().items():
        corner = tuple(slice(n) for n in values[name].shape)
        assert torch.equal(value[corner], values[name]), f"{name} keeps what it was"
        widened_ones += value.shape != values[name].shape
    for name, weight in new.named_parameters():
        momentum = old_optimizer.state[weights[name]].get("momentum_buffer")
        corner = tuple(slice(n) for n in weights[name].shape)
        if momentum is None:
            assert weight not in new_optimizer.state
        else:
            assert torch.equal(new_optimizer.state[weight]["momentum_buffer"][corner], momentum)
    assert bool(widened_ones) == (after != 4)
    if after == 4:
        x_BCHW, p = torch.randn(8, 1, 8, 8), uniform(space(4))
        with torch.no_grad():
            assert torch.equal(old(x_BCHW, p), new(x_BCHW, p))


def test_channels_of_one_operation_are_copied_alike() -> None:
    (old, optimizer), new = trained(4), space(2).build_supernet()
    carry_over(old, new, (optimizer, torch.optim.SGD(new.parameters(), lr=0.1)), seed=3, stage=1)
    edge = "stack.cells.0.edges.0.ops.4"  # a separable convolution: 2 channels become 4
    index = channel_index(2, 4, 3, edge, 1)
    assert index[:2].tolist() == [0, 1] and set(index.tolist()) <= {0, 1}
    for i in (1, 5):
        a, b = (net.get_submodule(f"{edge}.{i}").weight for net in (old, new))
        assert torch.equal(b, a[index])
    for i in (2, 6):
        a, b = (net.get_submodule(f"{edge}.{i}").weight for net in (old, new))
        assert torch.equal(b, a[index][:, index])


def test_on_copied_inputs_widening_is_the_same_function_but_for_the_number_of_copies() -> None:
    torch.manual_seed(0)
    weight, x_BCHW = torch.randn(3, 3, 1, 1), torch.randn(2, 3, 5, 5)
    index = torch.tensor([0, 1, 2, 1, 1, 0])
    wide = widened(weight, (6, 6, 1, 1), lambda before, after: index)
    copies = torch.bincount(index)[index]
    y_BCHW = F.conv2d(x_BCHW[:, index], wide / copies[:, None, None])
    torch.testing.assert_close(y_BCHW, F.conv2d(x_BCHW, weight)[:, index])


def test_widened_networks_go_on_in_one_schedule_with_their_alpha(tmp_path: Path) -> None:
    search = make_search(tmp_path, *WIDEN)
    run_epoch(search)
    alphas = [a.detach().clone() for a in search.parts.architecture]
    sizes = sum(w.numel() for w in search.weights)
    search.begin_epoch()
    assert kept(search) == {4}
    assert sum(w.numel() for w in search.weights) > sizes
    assert search.weight_optimizer.state, "momentum is carried over"
    assert search.weight_optimizer.param_groups[0]["lr"] == pytest.approx(0.0125)
    assert search.parts.update.state_dict()["state"], "alpha's optimiser goes on"
    assert all(torch.equal(a, b) for a, b in zip(alphas, search.parts.architecture, strict=True))


def test_too_few_epochs_are_refused_unless_debug_has_cut_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"search\.epochs=2 is too few for the 3 stages"):
        make_search(tmp_path / "a", *SHRINK, "limit.epochs=null", "search.epochs=2")
    assert make_search(tmp_path / "b", *SHRINK, "limit.epochs=1").begins == (0,)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("modifier.prune_widen.partial=[4]",), "it must fall from stage to stage, from below the 4"),
        (("modifier.prune_widen.partial=[2,1]",), "one entry for each stage"),
        (("modifier.partial_channels.parts=2", "modifier.prune_widen.partial=[1]", "space.nodes=1"), ""),
    ],
)
def test_stages_that_cannot_be_are_refused(overrides: tuple[str, ...], said: str, tmp_path: Path) -> None:
    if not said:
        assert run_epochs(make_search(tmp_path, *WIDEN, *overrides)).stage == 1
        return
    with pytest.raises(UserError, match=said):
        make_search(tmp_path, *WIDEN, *overrides)


def test_a_search_has_one_list_of_stages() -> None:
    with pytest.raises(UserError, match="one list of stages"):
        check_together(tiny_config("run_dir=x", "modifier=[partial_channels,progressive_shrinking,prune_widen]"))
