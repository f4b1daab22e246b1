"""A batch in parts: the same gradient, less memory, and no trace in statistics or random streams."""

from __future__ import annotations

import weakref
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compositions import random_task
from helpers import make_search, run_epochs
from torch import Tensor, nn
from torch._dynamo.utils import counters

from supernet.errors import UserError
from supernet.interfaces import StepResult
from supernet.runtime.microbatches import in_parts
from supernet.search import Search, search_step
from supernet.spaces.banks import fused
from supernet.types import Batch


def batch(size: int = 7) -> Batch:
    draw = torch.Generator().manual_seed(0)
    return Batch(torch.randn(size, 3, 8, 8, generator=draw, dtype=torch.float64), torch.arange(size) % 3)


def small_net(*norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), *norm, nn.Tanh(), nn.Flatten(), nn.Linear(144, 3)).double()


def loss_of(net: nn.Module, batch: Batch, parts: int) -> StepResult:
    def step(part: Batch) -> StepResult:
        logits = net(part.x)
        return StepResult(F.cross_entropy(logits, part.y), {"correct": (logits.argmax(dim=1) == part.y).sum()})

    return in_parts(step, batch, parts, net)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_the_gradient_is_that_of_the_whole_batch(parts: int) -> None:
    net, data = small_net(), batch()
    weights = list(net.parameters())
    whole, split = loss_of(net, data, 1), loss_of(net, data, parts)
    assert split.metrics["correct"] == whole.metrics["correct"]
    torch.testing.assert_close(split.loss, whole.loss)
    first = [torch.autograd.grad(r.loss, weights, create_graph=True) for r in (whole, split)]
    torch.testing.assert_close(first[1], first[0])
    second = [torch.autograd.grad(sum(g.square().sum() for g in grads), weights) for grads in first]
    torch.testing.assert_close(second[1], second[0])


def test_running_statistics_move_once_for_each_part() -> None:
    data = batch(8)
    split, by_hand = small_net(nn.BatchNorm2d(4)), small_net(nn.BatchNorm2d(4))
    loss_of(split, data, 2).loss.backward()
    for x in data.x.tensor_split(2):
        by_hand(x)
    assert split[1].num_batches_tracked == 2  # type: ignore[union-attr]
    for a, b in zip(split.buffers(), by_hand.buffers(), strict=True):
        assert torch.equal(a, b)


def test_draws_are_repeated_exactly() -> None:
    """Where the repetition drew other dropout masks, the gradient would not be that of the loss."""
    net, data = small_net(nn.Dropout(0.5)), batch(6)
    seen: list[Tensor] = []
    net[1].register_forward_hook(lambda *a: seen.append(a[-1].detach()))
    torch.manual_seed(1)
    loss_of(net, data, 2).loss.backward()
    after = torch.rand(1)
    masks = [s == 0 for s in seen]
    assert len(masks) == 4 and not torch.equal(masks[0], masks[1])
    # Parts are repeated from the last to the first.
    assert torch.equal(masks[2], masks[1]) and torch.equal(masks[3], masks[0])
    torch.manual_seed(1)
    loss_of(net, data, 2)
    assert torch.equal(torch.rand(1), after), "the repetition leaves the streams where they were"


@pytest.mark.parametrize("parts", [1, 4])
def test_one_part_at_a_time_is_in_memory(parts: int) -> None:
    net, data = small_net(), batch(8)
    alive: list[weakref.ref[Tensor]] = []
    most = [0]

    def count(*arguments: object) -> None:
        alive.append(weakref.ref(arguments[-1].untyped_storage()))  # type: ignore[attr-defined]
        most[0] = max(most[0], sum(s().nbytes() for s in alive if s() is not None))

    net[0].register_forward_hook(count)
    loss_of(net, data, parts).loss.backward()
    map_bytes = 8 * 4 * 6 * 6 * 8
    assert most[0] == map_bytes // parts, "the map behind the first convolution, of all images or of one part's"


def test_a_state_between_batches_is_refused() -> None:
    data = batch(4)
    with pytest.raises(UserError, match=r"memory\.micro_batches=2: this task hands a state on"):
        in_parts(lambda b: StepResult(b.x.sum(), {}, carry=torch.zeros(1)), data, 2, nn.Identity())


def tiny(folder: Path, parts: int, *overrides: str) -> Search:
    size = (
        "space.nodes=1",
        "search.channels=2",
        "limit.batch=8",
        "limit.steps=2",
        "limit.epochs=1",
        "limit.images=null",
        f"memory.micro_batches={parts}",
    )
    return make_search(folder, *size, *overrides, task=random_task(64))


UPDATES = ["update=unrolled", "update=single_level", "precision=bf16", "method=gdas"]
SECOND_DERIVATIVES = ["modifier=[layer_alignment]", "method=robust_darts"]


@pytest.mark.parametrize("override", [*UPDATES, *SECOND_DERIVATIVES])
def test_every_update_runs_in_parts(override: str, tmp_path: Path) -> None:
    search = run_epochs(tiny(tmp_path, 2, override))
    assert search.epoch == 1
    search.finite.check("of the test")


def without_batch_statistics(search: Search) -> Search:
    """Norms by fixed statistics, in float64: then the parts of a batch do not see each other."""
    for module in search.parts.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
            module.eval()
            module.train = lambda mode=True, norm=module: norm  # type: ignore[method-assign,misc]
    return search


def assert_equal_steps(one: Search, other: Search, *, steps: int) -> None:
    """They give the same values, weights and statistics."""
    found = []
    for search in (one, other):
        search.begin_epoch()
        found.append([search_step(search, search.context()) for _ in range(steps)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=2e-3, atol=2e-5, check_dtype=False)
    for a, b in zip(one.weights, other.weights, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5)
    for a, b in zip(one.parts.net.buffers(), other.parts.net.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("update", ["first_order", "unrolled", "single_level"])
def test_steps_in_parts_equal_steps_on_whole_batches(update: str, tmp_path: Path) -> None:
    overrides = (f"update={update}", "search.statistics=running", "engine=plain")
    whole, split = (without_batch_statistics(tiny(tmp_path / str(parts), parts, *overrides)) for parts in (1, 4))
    assert_equal_steps(whole, split, steps=2)


@pytest.mark.parametrize("update", ["first_order", "unrolled"])
def test_parts_with_compiled_passes_equal_parts_of_plain_modules(
    update: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    evaluate = fused.evaluate_edges

    def count(x_BCHW: Tensor, *rest: Any) -> Any:
        seen.append(len(x_BCHW))
        return evaluate(x_BCHW, *rest)

    monkeypatch.setattr("supernet.spaces.banks.bank.evaluate_edges", count)
    plain, compiled = (
        tiny(tmp_path / engine, 2, f"update={update}", "search.statistics=running", f"engine={engine}")
        for engine in ("plain", "compiled")
    )
    assert_equal_steps(plain, compiled, steps=1)
    assert set(seen) == {4}, "they see halves of batches of 8"


def test_parts_of_a_compiled_network_equal_parts_of_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Traced and differentiated as for compile=true, but not made into C++, which takes minutes."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    small = ("engine=plain", "search.statistics=running", "space.operations=[skip_connect,nor_conv_1x1]")
    few = ("space.reductions=0", "limit.cells=1", "update=single_level")
    plain, compiled = (tiny(tmp_path / on, 2, *small, *few, f"compile={on}") for on in ("false", "true"))
    before = counters["stats"]["unique_graphs"]
    assert_equal_steps(plain, compiled, steps=1)
    assert counters["stats"]["unique_graphs"] == before + 1, "it was compiled"
    assert not [record for record in caplog.records if record.name.startswith("supernet")]
