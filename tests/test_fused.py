"""engine=compiled equals the plain modules, and goes on without a compiler. Most tests run the passes as they stand,
uncompiled: compiling them takes a minute."""

from __future__ import annotations

import copy
import functools
import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supernet.spaces.banks import BankedFanOut, fused, kernels
from supernet.spaces.cell import CellEdge, plain_fan_out
from supernet.spaces.ops import DARTS_OPERATIONS, OPERATIONS, Norm, register_operation
from supernet.types import CellMixing
from tests.test_banks import Found, distance, make_edges, random_p, root_mean_square, run

compiled_fan_out = functools.partial(BankedFanOut, fuse=True)


@pytest.fixture
def uncompiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of edges in every evaluation with compiled passes."""
    seen = []
    evaluate = fused.evaluate_edges

    def count(x: Tensor, maps: Any, chains_RK: Sequence[Any], p_KR: Tensor) -> Sequence[Tensor]:
        seen.append(len(chains_RK))
        return evaluate(x, maps, chains_RK, p_KR)

    monkeypatch.setattr("supernet.spaces.banks.bank.evaluate_edges", count)
    return seen


def both(edges: list[CellEdge], x: Tensor, p: CellMixing) -> tuple[Found, Found]:
    twin = copy.deepcopy(edges)
    return run(compiled_fan_out(edges), edges, x, p), run(plain_fan_out(twin), twin, x, p)


def double_edges(count: int, channels: int, stride: int, norm: Norm, options: Sequence[str] = DARTS_OPERATIONS) -> Any:
    torch.manual_seed(0)
    edges = make_edges(count, channels, stride, norm, options)
    for edge in edges:
        edge.module.double()
    return edges


@pytest.mark.parametrize("active", [None, (4, 1, 3), (5, 4, 4), (0, 7, 7)])
@pytest.mark.parametrize("track", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_compiled_engine_equals_plain_modules(
    uncompiled: None, calls: list[int], stride: int, track: bool, active: tuple[int, ...] | None
) -> None:
    for channels, size in ((6, 8), (5, 9)):
        edges = double_edges(3, channels, stride, Norm(False, track))
        p = random_p(3, len(DARTS_OPERATIONS), active_N=active, edge_N=torch.rand(3, dtype=torch.float64))
        compiled, plain = both(edges, torch.randn(4, channels, size, size, dtype=torch.float64), p)
        assert distance(compiled, plain) < 1e-9
    assert calls


def test_without_gradients_of_weights_or_of_the_state(uncompiled: None, calls: list[int]) -> None:
    """As in the architecture step, whose first cell sees a state that wants no gradient."""
    edges = double_edges(3, 6, 1, Norm(False, True))
    for edge in edges:
        edge.module.requires_grad_(False)
    twin = copy.deepcopy(edges)
    p = random_p(3, len(DARTS_OPERATIONS))
    x = torch.randn(4, 6, 8, 8, dtype=torch.float64)
    found = []
    for fan_out in (compiled_fan_out(edges), plain_fan_out(twin)):
        leaf = p.op_NK.clone().requires_grad_()
        loss = sum(y.square().sum() for _, y in fan_out(x, CellMixing(leaf, p.mask_NK)))
        found.append(torch.autograd.grad(loss, leaf)[0])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
    assert calls == [3]


def test_masks_norms_with_parameters_and_operations_of_the_user(uncompiled: None, calls: list[int]) -> None:
    """What compiled passes do not serve is evaluated by the other banks or as it stands, beside them."""
    register_operation("square", lambda channels, stride, norm: nn.Sequential(nn.Conv2d(channels, channels, 1, stride)))
    try:
        names = (*DARTS_OPERATIONS, "square", "nor_conv_3x3")
        edges = double_edges(4, 4, 1, Norm(False, True), names)
        edges[3] = replace(edges[3], module=double_edges(1, 4, 1, Norm(True, True), names)[0].module)
        mask = (*tuple(tuple((n + k) % 3 != 0 for k in range(10)) for n in range(3)), (True,) * 10)
        x = torch.randn(3, 4, 7, 7, dtype=torch.float64)
        compiled, plain = both(edges, x, random_p(4, 10, mask_NK=mask))
        assert distance(compiled, plain) < 1e-9
        assert sum(calls) == 3
    finally:
        del OPERATIONS["square"]


def test_norms_in_different_modes(uncompiled: None, calls: list[int]) -> None:
    """Pools whose norms use running statistics beside convolutions whose norms use the batch, and the other way."""
    for frozen in ("max_pool_3x3", "sep_conv_5x5"):
        edges = double_edges(2, 4, 1, Norm(False, True))
        for edge in edges:
            edge.module.ops[DARTS_OPERATIONS.index(frozen)].eval()
        compiled, plain = both(edges, torch.randn(3, 4, 6, 6, dtype=torch.float64), random_p(2, 8))
        assert distance(compiled, plain) < 1e-9
    assert calls == [2, 2]


@pytest.mark.parametrize("scale", [0.0, 30.0])
def test_float32_is_as_precise_as_the_plain_modules(uncompiled: None, scale: float) -> None:
    errors = []
    for seed in range(3):
        torch.manual_seed(seed)
        edges = make_edges(2, 8, 1, Norm(False, True))
        exact_edges = copy.deepcopy(edges)
        for edge in exact_edges:
            edge.module.double()
        x = torch.randn(16, 8, 16, 16, dtype=torch.float64) + scale
        p = random_p(2, 8)
        exact = run(plain_fan_out(exact_edges), exact_edges, x, p)
        found = both(edges, x.float(), CellMixing(p.op_NK.float(), p.mask_NK))
        errors.append([max(root_mean_square(each, exact).values()) for each in found])
    ours, theirs = (statistics.median(each) for each in zip(*errors, strict=True))
    assert ours < 3 * theirs


def test_evaluation_is_not_compiled(uncompiled: None, calls: list[int]) -> None:
    edges = double_edges(2, 4, 1, Norm(False, True))
    x, p = torch.randn(3, 4, 6, 6, dtype=torch.float64), random_p(2, 8)
    with torch.no_grad():
        list(compiled_fan_out(edges)(x, p))
    for edge in edges:
        edge.module.eval()
    compiled, plain = both(edges, x, p)
    assert distance(compiled, plain) < 1e-9
    assert not calls


def test_one_value_per_channel_raises_as_batch_norm_does(uncompiled: None) -> None:
    edges = make_edges(1, 4, 2, Norm(False, False), ("none", "sep_conv_3x3"))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        list(compiled_fan_out(edges)(torch.randn(1, 4, 2, 2), random_p(1, 2, torch.float32)))


def test_without_a_compiler_one_warning_and_the_other_banks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, calls: list[int]
) -> None:
    def fail(*args: object) -> Tensor:
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(kernels, "rectified", fail)
    kernels.available.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                edges = double_edges(2, 4, 1, Norm(False, True))
                compiled, plain = both(edges, torch.randn(3, 4, 6, 6, dtype=torch.float64), random_p(2, 8))
                assert distance(compiled, plain) < 1e-9
        assert [record.getMessage() for record in caplog.records] == [
            "engine=compiled: going on with engine=banked, since the compiler failed: no C++ compiler"
        ]
        assert not calls
    finally:
        kernels.available.cache_clear()


@pytest.mark.slow
def test_compiled_passes_equal_themselves_uncompiled() -> None:
    """The whole engine, really compiled."""
    edges = double_edges(2, 16, 1, Norm(False, True))
    x, p = torch.randn(4, 16, 8, 8, dtype=torch.float64), random_p(2, 8)
    compiled, plain = both(edges, x, p)
    assert distance(compiled, plain) < 1e-9
