"""The places at which a modifier acts: each changes what it says and nothing where it does not act."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers import make_search, run_epochs
from torch import Tensor, nn

from supernet.interfaces import (
    AlphaGate,
    EpochEnd,
    GradientModifier,
    LossModifier,
    MixingModifier,
    PGradient,
    StepContext,
    Stop,
    StopModifier,
)
from supernet.registry import PARTS, register
from supernet.search import Search
from supernet.types import Mixing, Moment


@dataclass
class AnyConfig:
    """A modifier of a test."""

    name: str = "any"


class OnlyFirst(MixingModifier):
    """All weight on the first operation that computes something."""

    def __init__(self, config: AnyConfig) -> None:
        pass

    def edit_mixing(
        self, p: Mixing, moment: Moment, *, generator: torch.Generator, gradient: PGradient | None
    ) -> Mixing:
        return p.map(lambda t: t * 0.0 + torch.eye(t.shape[-1])[1])


class PullFirst(LossModifier):
    """A term that wants the first column of alpha large, and nothing else that counts."""

    def __init__(self, config: AnyConfig) -> None:
        pass

    def loss_term(self, p: Mixing, alphas: dict[str, Tensor], moment: Moment) -> Tensor | None:
        if moment.phase != "alpha":
            return None
        return -1e3 * torch.stack([a[..., 0].sum() for a in alphas.values()]).sum()


class Freeze(GradientModifier):
    """No gradient reaches the classifier."""

    def __init__(self, config: AnyConfig) -> None:
        pass

    def edit_gradients(self, net: nn.Module, ctx: StepContext) -> None:
        net.get_submodule("stack.classifier").zero_grad()


class Hold(AlphaGate):
    """Alpha waits for half of the search."""

    def __init__(self, config: AnyConfig) -> None:
        pass

    def alpha_moves(self, moment: Moment) -> bool:
        return moment.progress >= 0.5


class StopAtOnce(StopModifier):
    """One epoch is enough."""

    def __init__(self, config: AnyConfig) -> None:
        pass

    def should_stop(self, end: EpochEnd) -> Stop | None:
        return Stop("seen enough", {name: torch.zeros_like(a) for name, a in end.alphas.items()})


@pytest.fixture
def searching(tmp_path: Path) -> Iterator[object]:
    """A search with one modifier, or none."""

    def search(kind: type | None, *overrides: str) -> Search:
        register("modifier", "any", AnyConfig, kind or OnlyFirst)
        from supernet.config.store import store_parts

        store_parts()
        chosen = ["modifier=[any]"] if kind else []
        folder = tmp_path / (kind.__name__ if kind else "none")
        return make_search(folder, *chosen, "limit.epochs=2", "search.weight_decay=0", *overrides)

    yield search
    PARTS.pop(("modifier", "any"), None)


def alphas(search: Search) -> Tensor:
    return torch.cat([a.detach().flatten() for a in search.parts.mixer.values().values()])


def test_a_mixing_modifier_edits_p_in_every_phase(searching) -> None:  # type: ignore[no-untyped-def]
    search = run_epochs(searching(OnlyFirst))
    operations = {op for cell in search.derived()[1].cells.values() for op, _ in cell.edges}
    assert operations == {search.parts.space.groups[0].options[1]}
    plain = run_epochs(searching(None))
    assert not torch.equal(plain.weights[0], search.weights[0])


def test_a_loss_modifier_moves_alpha(searching) -> None:  # type: ignore[no-untyped-def]
    pulled, plain = run_epochs(searching(PullFirst)), run_epochs(searching(None))
    for name, alpha in pulled.parts.mixer.values().items():
        assert (alpha[..., 0] > plain.parts.mixer.values()[name][..., 0]).all()


def test_a_gradient_modifier_stands_between_backward_and_step(searching) -> None:  # type: ignore[no-untyped-def]
    search = searching(Freeze)
    before = {name: w.detach().clone() for name, w in search.parts.net.named_parameters()}
    run_epochs(search)
    unmoved = {name for name, w in search.parts.net.named_parameters() if torch.equal(w, before[name])}
    assert unmoved == {"stack.classifier.weight", "stack.classifier.bias"}


def test_a_gate_holds_alpha_back(searching) -> None:  # type: ignore[no-untyped-def]
    search = searching(Hold)
    before = alphas(search)
    search.begin_epoch()
    search.train_step()
    assert torch.equal(alphas(search), before)
    search.epoch = 1
    search.train_step()
    assert not torch.equal(alphas(search), before)


def test_a_stop_ends_the_search(searching) -> None:  # type: ignore[no-untyped-def]
    search = run_epochs(searching(StopAtOnce))
    assert (search.epoch, search.stopped) == (1, "seen enough")
    assert not alphas(search).any(), "the search went back to the alphas that the stop gives"
