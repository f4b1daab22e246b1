"""The regulariser of beta-DARTS against its closed form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import make_search, run_epochs

from supernet.interfaces import Setting
from supernet.modifiers.beta_decay import BetaDecay, smooth_max
from supernet.schema.modifiers import BetaDecayConfig
from supernet.spaces.darts import DartsSpace
from supernet.types import GroupMixing, Mask, Mixing, Moment

SPACE = DartsSpace(3, 5, nodes=2, search_cells=3, extras=("auxiliary_skip",))


def term(alphas: dict[str, torch.Tensor], progress: float, mask: Mask | None = None, phase: str = "alpha"):  # type: ignore
    part = BetaDecay(BetaDecayConfig(weight=50.0))
    part.bind(Setting(SPACE, (3, 8, 8), torch.device("cpu"), 0))
    p = Mixing({g.name: GroupMixing(alphas[g.name], mask or g.mask_NK) for g in SPACE.groups})
    return part.loss_term(p, alphas, Moment(phase, 0, progress, 0.0))  # type: ignore[arg-type]


def drawn() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        g.name: torch.randn(1, g.decisions, 9, generator=draw, dtype=torch.float64).requires_grad_()
        for g in SPACE.groups
    }


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_the_gradient_is_the_softmax_of_alpha(progress: float) -> None:
    alphas = drawn()
    loss = term(alphas, progress)
    by_hand = sum(torch.log(a[..., :8].exp().sum(-1)).sum() for a in alphas.values()) / 10
    torch.testing.assert_close(loss, 50 * progress * by_hand)
    for alpha, grad in zip(alphas.values(), torch.autograd.grad(loss, list(alphas.values())), strict=True):
        assert not grad[..., 8].any(), "the extra column has no part in it"
        torch.testing.assert_close(grad[..., :8], 50 * progress / 10 * alpha[..., :8].softmax(-1))


def test_options_that_do_not_exist_or_are_extra_count_for_nothing() -> None:
    alphas = drawn()
    # As p' has it when the auxiliary skip is on, and the search has been narrowed to its first three operations.
    mask = ((True, True, True, *(False,) * 5, True),) * 5
    loss = term(alphas, 1.0, mask)
    torch.testing.assert_close(loss, 5 * sum(a[..., :3].logsumexp(-1).sum() for a in alphas.values()))
    grads = torch.autograd.grad(loss, list(alphas.values()))
    assert all(not g[..., 3:].any() and torch.isfinite(g).all() for g in grads)


def test_it_is_an_upper_bound_of_the_maximum() -> None:
    alpha_LNK = torch.randn(1, 4, 6)
    full = ((True,) * 6,) * 4
    over = smooth_max(alpha_LNK, full) - alpha_LNK.amax(-1)
    assert ((over > 0) & (over <= torch.log(torch.tensor(6.0)))).all()


def test_the_phase_of_the_weights_has_no_term() -> None:
    assert term(drawn(), 0.5, phase="weights") is None


def test_alpha_grows_apart_less(tmp_path: Path) -> None:
    options = ["limit.steps=3", "search.alpha.init_std=1", "search.alpha.lr=0.1"]
    spread = {}
    for name in ("plain", "off", "on"):
        chosen = [] if name == "plain" else ["modifier=[beta_decay]"]
        chosen += ["modifier.beta_decay.weight=0"] if name == "off" else []
        search = run_epochs(make_search(tmp_path / name, *options, *chosen))
        spread[name] = {k: a.detach().softmax(-1) for k, a in search.parts.mixer.values().items()}
    for group, plain in spread["plain"].items():
        assert torch.equal(spread["off"][group], plain)
        assert spread["on"][group].var(-1).mean() < plain.var(-1).mean()
