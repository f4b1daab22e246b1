"""Loss terms that depend on alpha or p alone: the flat Dirichlet anchor, the zero-one loss, the entropy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_search
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from supernet.config import compose
from supernet.errors import UserError
from supernet.interfaces import LossModifier, Setting
from supernet.modifiers.dirichlet_kl import kl_to_flat
from supernet.modifiers.entropy import entropy
from supernet.registry import PARTS
from supernet.relaxations.dirichlet import concentration
from supernet.spaces.darts import DartsSpace
from supernet.types import GroupMixing, Mixing, Moment, Phase

SPACE = DartsSpace(3, 10, nodes=2, search_cells=3)
NEEDS = {"dirichlet_kl": "dirichlet", "zero_one_loss": "sigmoid", "entropy": "softmax"}


def random_alphas(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        group.name: torch.randn(1, group.decisions, len(group.options), generator=draw, dtype=torch.float64)
        for group in SPACE.groups
    }


def term(name: str, alphas: dict[str, Tensor], progress: float = 0.5, phase: Phase = "alpha", **keys: Any) -> Tensor:
    part = PARTS["modifier", name]
    modifier: LossModifier = part.load()(part.config(**keys))
    modifier.bind(Setting(SPACE, (3, 8, 8), torch.device("cpu"), 0))
    p = Mixing({g.name: GroupMixing(alphas[g.name].softmax(dim=-1), g.mask_NK) for g in SPACE.groups})
    found = modifier.loss_term(p, alphas, Moment(phase, 0, progress, progress))
    assert (found is None) == (phase != "alpha")
    return torch.zeros(()) if found is None else found


@pytest.mark.parametrize("name", NEEDS)
def test_a_term_acts_on_alpha_alone(name: str) -> None:
    assert not term(name, random_alphas(), phase="weights")
    once, twice = (term(name, random_alphas(), weight=weight) for weight in (0.5, 1.0))
    assert once
    assert twice == pytest.approx(2 * float(once))


@pytest.mark.parametrize("name", NEEDS)
def test_a_term_changes_a_search_and_a_weight_of_zero_does_not(name: str, tmp_path: Path) -> None:
    def alphas(*overrides: str) -> Tensor:
        chosen = (f"relaxation={NEEDS[name]}", "search.alpha.init_std=0.5", "space.nodes=1", "engine=plain")
        search = make_search(tmp_path / str(len(list(tmp_path.iterdir()))), *chosen, *overrides)
        search.begin_epoch()
        search.train_step()
        return torch.cat([alpha.detach().flatten() for alpha in search.parts.mixer.values().values()])

    off = alphas()
    assert torch.equal(alphas(f"modifier=[{name}]", f"modifier.{name}.weight=0.0"), off)
    assert not torch.equal(alphas(f"modifier=[{name}]", f"modifier.{name}.weight=100.0"), off)


def test_the_divergence_is_that_of_torch() -> None:
    full, holes = (True,) * 4, (True, False, True, True)
    alpha_LNK = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    mask_NK = (full, holes, (False,) * 4)
    found = kl_to_flat(concentration(alpha_LNK, mask_NK), mask_NK)
    beta = torch.nn.functional.elu(alpha_LNK[0]) + 1
    one = torch.ones(4, dtype=torch.float64)
    expected = [
        kl_divergence(Dirichlet(beta[0]), Dirichlet(one)),
        kl_divergence(Dirichlet(beta[1, [0, 2, 3]]), Dirichlet(one[:3])),
        torch.zeros(()),
    ]
    assert torch.allclose(found[0], torch.stack(expected).double())
    ours, theirs = (torch.autograd.grad(values.sum(), alpha_LNK)[0] for values in (found, torch.stack(expected)))
    assert torch.allclose(ours, theirs)
    assert term("dirichlet_kl", {name: torch.zeros_like(a) for name, a in random_alphas().items()}) == 0.0


def test_the_zero_one_loss_is_the_published_mean_square() -> None:
    """Of the published operations, which are those of DARTS without ``none``, the first of ours."""
    alphas = random_alphas()
    published = torch.cat([alpha[0, :, 1:] for alpha in alphas.values()]).sigmoid()
    expected = -torch.nn.functional.mse_loss(published, torch.full_like(published, 0.5))
    assert term("zero_one_loss", alphas) == pytest.approx(10.0 * float(expected))


def test_the_zero_one_loss_drives_weights_apart() -> None:
    alphas = {name: alpha.requires_grad_() for name, alpha in random_alphas().items()}
    grads = torch.autograd.grad(term("zero_one_loss", alphas), list(alphas.values()))
    for alpha, grad in zip(alphas.values(), grads, strict=True):
        assert (grad[..., 1:].sign() == -alpha[..., 1:].sign()).all(), "descent moves away from 0"
        assert not grad[..., 0].any(), "none has no place in a genotype"


def test_the_entropy_is_that_of_torch_and_finite_at_corners() -> None:
    p_LNK = random_alphas()["normal"].softmax(dim=-1)
    assert torch.allclose(entropy(p_LNK), torch.distributions.Categorical(probs=p_LNK).entropy())
    assert entropy(torch.full((1, 1, 8), 0.125)).item() == pytest.approx(math.log(8))
    alpha = torch.tensor([[[0.0, -200.0, float("-inf")]]], requires_grad=True)
    (grad,) = torch.autograd.grad(entropy(alpha.softmax(dim=-1)).sum(), alpha)
    assert grad.isfinite().all()


def test_the_weight_of_the_entropy_grows_where_asked() -> None:
    alphas = random_alphas()
    constant = float(term("entropy", alphas, weight=1.0))
    p = torch.cat([alpha.softmax(dim=-1).flatten(0, 1) for alpha in alphas.values()])
    assert constant == pytest.approx(float(-(p * p.log()).sum(dim=-1).mean()))
    for progress in (0.0, 0.25, 0.9):
        found = float(term("entropy", alphas, progress, weight=1.0, growth="linear"))
        assert found == pytest.approx(progress * constant)


@pytest.mark.parametrize(
    "overrides",
    [
        ["modifier=[dirichlet_kl]"],
        ["modifier=[zero_one_loss]"],
        ["modifier=[entropy]", "relaxation=sigmoid"],
        ["modifier=[entropy]", "relaxation=gdas"],
        ["modifier=[entropy]", "relaxation=reinmax"],
        ["derive=threshold", "space=nasbench201"],
        ["derive=threshold", "modifier=[edge_norm]"],
        ["relaxation=reinmax", "relaxation.temperature_end=0.5"],
        ["relaxation=hard_gumbel", "relaxation.temperature_start=0"],
    ],
)
def test_what_makes_no_sense_together_is_refused(overrides: list[str]) -> None:
    with pytest.raises(UserError):
        compose(["+experiment=darts_digits", *overrides])
