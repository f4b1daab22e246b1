"""Relaxations: masks, means against Monte Carlo, gradients against exact ones, and what is evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from supernet.interfaces import Relaxation
from supernet.mixer import Mixer
from supernet.registry import PARTS
from supernet.relaxations import masked_softmax, temperature
from supernet.relaxations.dirichlet import PathwiseDirichlet, concentration
from supernet.schema.relaxations import SoftmaxConfig
from supernet.spaces.darts import DartsSpace
from supernet.types import Mask, Mixing, Moment, Phase

NAMES = [name for group, name in PARTS if group == "relaxation"]
DISTRIBUTIONS = [name for name in NAMES if name != "sigmoid"]
FULL: Mask = ((True,) * 4,) * 2
HOLES: Mask = ((True, False, True, True), (False, True, False, False), (False,) * 4)


def build(name: str, **keys: Any) -> Relaxation:
    part = PARTS["relaxation", name]
    made: Relaxation = part.load()(part.config(**keys))
    return made


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_alpha(decisions: int, seed: int = 1) -> Tensor:
    return torch.randn(1, decisions, 4, generator=noise(seed), dtype=torch.float64)


def draws(relaxation: Relaxation, alpha_LNK: Tensor, mask_NK: Mask, count: int, progress: float = 0.0) -> Tensor:
    """Independent draws, side by side as placements."""
    many = alpha_LNK.expand(count, -1, -1)
    return relaxation.sample(many, mask_NK, generator=noise(7), progress=progress).op_LNK


def agrees(sample_LNK: Tensor, mean_NK: Tensor) -> bool:
    """The mean of the draws is what it should be, within five standard errors."""
    error_NK = sample_LNK.std(dim=0) / len(sample_LNK) ** 0.5
    return bool(((sample_LNK.mean(dim=0) - mean_NK).abs() <= 5 * error_NK + 1e-12).all())


COLD = ("softmax", "gumbel_softmax", "hard_gumbel")
"""What may be cooled."""


@pytest.mark.parametrize(
    ("name", "keys"), [*((name, {}) for name in NAMES), *((name, {"temperature_end": 0.01}) for name in COLD)]
)
@pytest.mark.parametrize("there", [0.3, float("-inf")])
def test_what_does_not_exist_has_no_p_and_no_gradient(name: str, keys: dict[str, float], there: float) -> None:
    relaxation, masked = build(name, **keys), ~torch.tensor([HOLES])
    for scale in (0.0, 1.0, 40.0):
        alpha_LNK = (scale * random_alpha(3)).float().masked_fill(masked, there).requires_grad_()
        for p in (
            relaxation.sample(alpha_LNK, HOLES, generator=noise(), progress=0.999),
            relaxation.mean(alpha_LNK, HOLES, progress=0.999),
        ):
            p_LNK = p.op_LNK
            assert p.mask_NK == HOLES
            assert p_LNK.dtype == alpha_LNK.dtype
            assert p_LNK.isfinite().all()
            assert not p_LNK[masked].any()
            (grad,) = torch.autograd.grad((p_LNK * torch.arange(1.0, 5.0)).sum(), alpha_LNK)
            assert grad.isfinite().all()
            assert not grad[masked].any()
            if name in DISTRIBUTIONS:
                assert torch.allclose(p_LNK.sum(dim=-1), torch.tensor([[1.0, 1.0, 0.0]]))
                assert not grad[0, 1].any(), "the only option of a decision has p = 1 whatever its alpha is"


@pytest.mark.parametrize("name", NAMES)
def test_an_existing_option_may_have_alpha_minus_infinity(name: str) -> None:
    alpha_LNK = torch.tensor([[[0.0, float("-inf"), 1.0, 0.5]] * 2], requires_grad=True)
    p_LNK = build(name).sample(alpha_LNK, FULL, generator=noise(), progress=0.0).op_LNK
    (grad,) = torch.autograd.grad((p_LNK * torch.arange(1.0, 5.0)).sum(), alpha_LNK)
    assert p_LNK[0, 0, 1] <= 1e-6
    assert grad.isfinite().all()
    assert abs(grad[0, 0, 1]) <= 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_alpha_can_leave_zero_where_a_search_begins(name: str) -> None:
    alpha_LNK = torch.zeros(1, 2, 4, requires_grad=True)
    p_LNK = build(name).sample(alpha_LNK, FULL, generator=noise(), progress=0.0).op_LNK
    (grad,) = torch.autograd.grad((p_LNK * torch.arange(1.0, 5.0)).sum(), alpha_LNK)
    assert grad.all()


@pytest.mark.parametrize("name", NAMES)
def test_noise_comes_from_the_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    relaxation, alpha_LNK = build(name), random_alpha(2)
    first, again, other = (
        relaxation.sample(alpha_LNK, FULL, generator=noise(seed), progress=0.0).op_LNK for seed in (0, 0, 5)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name in ("softmax", "sigmoid"))


@pytest.mark.parametrize("name", ["hard_gumbel", "reinmax", "dirichlet"])
@pytest.mark.parametrize("mask_NK", [FULL, HOLES[:2]])
def test_the_mean_is_the_mean_of_the_draws(name: str, mask_NK: Mask) -> None:
    relaxation, alpha_LNK = build(name), random_alpha(2)
    sample_LNK = draws(relaxation, alpha_LNK, mask_NK, 40_000)
    assert agrees(sample_LNK, relaxation.mean(alpha_LNK, mask_NK, progress=0.0).op_LNK[0])
    if name != "dirichlet":
        assert set(sample_LNK.unique().tolist()) == {0.0, 1.0}, "exactly one-hot"


def test_the_concrete_distribution_has_the_mean_of_the_choice_that_it_relaxes() -> None:
    alpha_LNK = random_alpha(2)
    relaxation = build("gumbel_softmax", temperature_start=0.8, temperature_end=0.002)
    mean_NK = relaxation.mean(alpha_LNK, FULL, progress=0.0).op_LNK[0]
    warm, cold = (draws(relaxation, alpha_LNK, FULL, 40_000, progress) for progress in (0.0, 1.0))
    assert torch.equal(mean_NK, alpha_LNK[0].softmax(dim=-1))
    for sample_LNK in (warm, cold):
        chosen_LNK = torch.nn.functional.one_hot(sample_LNK.argmax(dim=-1), 4).double()
        assert agrees(chosen_LNK, mean_NK), "which option is the largest does not depend on the temperature"
    assert (cold.mean(dim=0) - mean_NK).abs().max() < 0.01
    assert not agrees(warm, mean_NK), "a warm draw is nearer to uniform, as its docstring says"


def test_a_concrete_draw_of_two_is_the_sigmoid_of_logistic_noise() -> None:
    """Of two options, E[p_0] = integral of sigmoid((a_0 - a_1 + x) / T) over the logistic density."""
    alpha_LNK, at = torch.tensor([[[0.9, -0.4]]], dtype=torch.float64), 0.7
    sample_LNK = draws(build("gumbel_softmax", temperature_start=at), alpha_LNK, ((True, True),), 40_000)
    x = torch.linspace(-40, 40, 80_001, dtype=torch.float64)
    expected = torch.trapezoid(torch.sigmoid((1.3 + x) / at) * torch.sigmoid(x) * torch.sigmoid(-x), x)
    assert agrees(sample_LNK, torch.stack([expected, 1 - expected])[None])


def test_temperatures_go_from_start_to_end() -> None:
    config = SoftmaxConfig(temperature_start=8.0, temperature_end=2.0)
    assert [temperature(config, progress) for progress in (0.0, 0.5, 1.0)] == [8.0, 5.0, 2.0]
    config.anneal = "exponential"
    assert temperature(config, 0.5) == pytest.approx(4.0)
    alpha_LNK = random_alpha(2)
    expected = (alpha_LNK / 4.0).softmax(dim=-1)
    softmax = build("softmax", temperature_start=8.0, temperature_end=2.0, anneal="exponential")
    for p in (
        softmax.sample(alpha_LNK, FULL, generator=noise(), progress=0.5),
        softmax.mean(alpha_LNK, FULL, progress=0.5),
    ):
        assert torch.allclose(p.op_LNK, expected)
    assert torch.allclose(build("softmax").mean(alpha_LNK, FULL, progress=0.3).op_LNK, alpha_LNK.softmax(dim=-1))


Objective = Callable[[Tensor], Tensor]
LINEAR, SQUARE = torch.tensor([0.3, -1.0, 2.0, 0.7]).double(), random_alpha(4, seed=3)[0]
OBJECTIVES: dict[str, Objective] = {
    "linear": lambda p_K: p_K @ LINEAR,
    "quadratic": lambda p_K: p_K @ LINEAR + p_K @ SQUARE @ p_K,
    "quartic": lambda p_K: (p_K @ LINEAR + p_K @ SQUARE @ p_K).square(),
}


def exact_gradient(alpha_K: Tensor, objective: Objective) -> Tensor:
    """Of E[f(D)] = sum over options of softmax(alpha)_k f(e_k)."""
    alpha_K = alpha_K.clone().requires_grad_()
    values_K = torch.stack([objective(e_K) for e_K in torch.eye(4, dtype=torch.float64)])
    return torch.autograd.grad(alpha_K.softmax(dim=-1) @ values_K, alpha_K)[0]


def straight_through(alpha_K: Tensor, objective: Objective) -> Tensor:
    """The mean of the straight-through gradient: E over D of J(softmax(alpha)) f'(D)."""
    total = torch.zeros(4, dtype=torch.float64)
    for k, share in enumerate(alpha_K.softmax(dim=-1)):
        leaf = alpha_K.clone().requires_grad_()
        soft_K = leaf.softmax(dim=-1)
        p_K = torch.eye(4, dtype=torch.float64)[k] + soft_K - soft_K.detach()
        total += share * torch.autograd.grad(objective(p_K), leaf)[0]
    return total


def mean_gradient(alpha_K: Tensor, objective: Objective) -> Tensor:
    """The mean of ReinMax's gradient, exactly: one draw for each option, weighted by its probability."""
    found: dict[int, Tensor] = {}
    for seed in range(400):
        leaf = alpha_K.clone().requires_grad_()
        p_K = build("reinmax").sample(leaf[None, None], FULL[:1], generator=noise(seed), progress=0.0).op_LNK[0, 0]
        found[int(p_K.argmax())] = torch.autograd.grad(objective(p_K), leaf)[0]
    assert len(found) == 4, "every option was drawn"
    shares = alpha_K.softmax(dim=-1)
    return torch.stack([shares[k] * grad for k, grad in found.items()]).sum(dim=0)


@pytest.mark.parametrize("seed", [1, 2])
def test_reinmax_is_of_second_order_and_straight_through_of_first(seed: int) -> None:
    alpha_K = 0.5 * random_alpha(1, seed)[0, 0]
    bias = {
        (order, name): float((estimate(alpha_K, objective) - exact_gradient(alpha_K, objective)).norm())
        for order, objective in OBJECTIVES.items()
        for name, estimate in (("reinmax", mean_gradient), ("straight_through", straight_through))
    }
    assert bias["linear", "reinmax"] < 1e-12
    assert bias["linear", "straight_through"] < 1e-12
    assert bias["quadratic", "reinmax"] < 1e-12
    assert bias["quadratic", "straight_through"] > 0.01
    assert bias["quartic", "reinmax"] > 0.01, "of second order and no more"


def test_the_hard_gumbel_gradient_is_that_of_the_soft_draw() -> None:
    """Against autograd through torch's own softmax, at the noise that the generator gives."""
    alpha_LNK, weight_K = random_alpha(2).requires_grad_(), torch.arange(1.0, 5.0, dtype=torch.float64)
    hard = build("hard_gumbel", temperature_start=3.0)
    p_LNK = hard.sample(alpha_LNK, FULL, generator=noise(4), progress=0.0).op_LNK
    exponential = torch.empty(1, 2, 4, dtype=torch.float64).exponential_(generator=noise(4))
    soft_LNK = ((alpha_LNK.log_softmax(dim=-1) - exponential.log()) / 3.0).softmax(dim=-1)
    assert torch.equal(p_LNK.argmax(dim=-1), soft_LNK.argmax(dim=-1))
    assert torch.equal(p_LNK.sum(dim=-1), torch.ones(1, 2, dtype=torch.float64))
    found, expected = (torch.autograd.grad((t * weight_K).sum(), alpha_LNK)[0] for t in (p_LNK, soft_LNK))
    assert torch.allclose(found, expected)


def test_the_bias_of_the_gumbel_gradient_falls_with_its_temperature() -> None:
    alpha_LNK, bias = random_alpha(1), {}
    for at in (5.0, 0.3):
        leaf = alpha_LNK.clone().requires_grad_()
        p_LNK = draws(build("hard_gumbel", temperature_start=at), leaf, FULL[:1], 40_000)
        (grad,) = torch.autograd.grad((p_LNK @ LINEAR).mean(), leaf)
        bias[at] = float((grad[0, 0] - exact_gradient(alpha_LNK[0, 0], OBJECTIVES["linear"])).norm())
    assert bias[0.3] < 0.3 * bias[5.0]


def test_concentrations_are_those_of_the_paper() -> None:
    alpha_LNK = torch.linspace(-6, 6, 24, dtype=torch.float64).view(1, 6, 4)
    expected = torch.nn.functional.elu(alpha_LNK) + 1
    assert torch.allclose(concentration(alpha_LNK, FULL[:1] * 6), expected)
    low = concentration(torch.full((1, 1, 4), -17.5), FULL[:1])
    assert torch.allclose(low.log(), torch.tensor(-17.5)), "where elu(alpha) + 1 is rounded to zero"


def test_the_pathwise_derivative_of_a_dirichlet_draw_is_the_formula() -> None:
    """dx_i/dbeta_j = -(dF/dbeta_j) / f * (1[i = j] - x_i) / (1 - x_j), from SciPy's beta distribution."""
    stats = pytest.importorskip("scipy.stats")
    beta = torch.tensor([0.4, 1.0, 2.5, 3.1], dtype=torch.float64, requires_grad=True)
    x = PathwiseDirichlet.apply(beta, noise(2))
    total, step = float(beta.detach().sum()), 1e-5
    for i in range(4):
        (grad,) = torch.autograd.grad(x[i], beta, retain_graph=True)
        for j in range(4):
            a, at = float(beta[j].detach()), float(x[j].detach())
            plus, minus = (stats.beta.cdf(at, a + h, total - a) for h in (step, -step))
            slope = -(plus - minus) / (2 * step) / stats.beta.pdf(at, a, total - a)
            assert float(grad[j]) == pytest.approx(
                slope * ((i == j) - float(x[i].detach())) / (1 - at), rel=1e-3, abs=1e-7
            )


@pytest.mark.parametrize("mask_NK", [FULL, HOLES[:2]])
def test_the_pathwise_gradient_of_a_second_moment_is_that_of_its_closed_form(mask_NK: Mask) -> None:
    """E[p_k^2] = beta_k (beta_k + 1) / (B (B + 1)); nothing of it is left to the third option, say, by luck."""
    leaf, weight_K = random_alpha(2).requires_grad_(), torch.tensor([1.0, 0.0, 0.0, 2.0]).double()
    many = leaf.detach().expand(40_000, -1, -1).clone().requires_grad_()
    p_LNK = build("dirichlet").sample(many, mask_NK, generator=noise(3), progress=0.0).op_LNK
    (grads,) = torch.autograd.grad((p_LNK.square() @ weight_K).sum(), many)
    beta = (torch.nn.functional.elu(leaf) + 1) * torch.tensor([mask_NK])
    total = beta.sum(dim=-1, keepdim=True)
    (expected,) = torch.autograd.grad(((beta * (beta + 1) / (total * (total + 1))) @ weight_K).sum(), leaf)
    assert agrees(grads, expected[0])
    assert expected[0, 0].any()


def test_the_pathwise_derivative_varies_less_than_that_of_normalised_gammas() -> None:
    beta = torch.tensor([0.5, 1.0, 2.0, 0.8], dtype=torch.float64).expand(20_000, 4).clone().requires_grad_()
    ours = PathwiseDirichlet.apply(beta, noise(1))
    gamma = torch._standard_gamma(beta, generator=noise(1))
    theirs = gamma / gamma.sum(dim=-1, keepdim=True)
    assert torch.allclose(ours, theirs)
    ours_grad, theirs_grad = (torch.autograd.grad((x[:, 0]).sum(), beta)[0] for x in (ours, theirs))
    assert agrees(ours_grad - theirs_grad, torch.zeros(4))
    assert (ours_grad.var(dim=0) < theirs_grad.var(dim=0)).all()


# What is evaluated, and how often the host waits.


def moment(phase: Phase = "weights", progress: float = 0.0) -> Moment:
    return Moment(phase, 0, progress, progress)


def make_mixer(space: DartsSpace, name: str) -> Mixer:
    return Mixer(space.groups, build(name), [], seed=0, init_std=0.1, device=torch.device("cpu"))


def small_space(engine: str = "plain") -> DartsSpace:
    return DartsSpace(3, 10, nodes=2, search_channels=4, search_cells=3, engine=engine)


def test_gdas_evaluates_one_operation_an_edge(engine: str) -> None:
    space = small_space(engine)
    torch.manual_seed(0)
    net, mixer = space.build_supernet(), make_mixer(space, "hard_gumbel")
    p = mixer.sample(moment(), step=3).leaf()
    net(torch.randn(4, 3, 8, 8), p).square().mean().backward()
    evaluated = 0
    for cell, kind in zip(net.stack.cells, space._search_frame.kinds(), strict=True):
        active_N = p[kind].active_LN[0]
        assert torch.equal(p[kind].op_LNK[0].argmax(dim=-1), torch.tensor(active_N))
        for n, edge in enumerate(cell.edges):
            for k, op in enumerate(edge.ops):
                grads = [w.grad for w in op.parameters()]
                assert all((grad is not None) == (k == active_N[n]) for grad in grads), "evaluated if and only if drawn"
                evaluated += k == active_N[n] and bool(grads)
    assert evaluated > 0
    for kind, group in p.items():
        elsewhere = torch.ones_like(group.op_LNK).scatter(-1, torch.tensor(group.active_LN)[..., None], 0.0).bool()
        assert not group.op_LNK.grad[elsewhere].any(), f"{kind}: only the drawn column has a gradient"
        assert group.op_LNK.grad.any()


def test_a_one_hot_p_is_the_same_network_whether_the_rest_is_evaluated_or_not(engine: str) -> None:
    space = small_space(engine)
    torch.manual_seed(0)
    net, x = space.build_supernet(), torch.randn(4, 3, 8, 8)
    sparse, dense = (make_mixer(space, name).sample(moment(), step=3).detach() for name in ("hard_gumbel", "reinmax"))
    assert all(torch.equal(sparse[kind].op_LNK, dense[kind].op_LNK) for kind in sparse), "they draw alike"
    assert all(group.active_LN is None for group in dense.values())
    assert torch.allclose(net(x, sparse), net(x, dense), atol=1e-4)


def test_a_decision_without_options_evaluates_nothing() -> None:
    space = small_space()
    mixer = make_mixer(space, "hard_gumbel")
    empty = tuple((False,) * 8 if n == 1 else row for n, row in enumerate(space.groups[0].mask_NK))
    mixer.groups["normal"] = replace(mixer.groups["normal"], mask_NK=empty)
    assert mixer.sample(moment(), step=0)["normal"].at(0).options(1) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_host_waits_once_for_a_sparse_draw_and_else_never(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = make_mixer(small_space(), name)
    mixer.sample(moment(), step=0)  # masks are copied to the device once
    waits = []
    for reads in ("item", "tolist", "__bool__", "__int__", "__float__", "cpu", "numpy"):
        original = getattr(Tensor, reads)
        monkeypatch.setattr(Tensor, reads, lambda t, *a, _f=original, _n=reads: (waits.append(_n), _f(t, *a))[1])
    mixer.sample(moment(), step=1)
    assert waits == (["tolist"] if build(name).sparse else [])


@pytest.mark.parametrize("name", NAMES)
def test_p_is_drawn_once_for_a_phase_of_a_step(name: str) -> None:
    mixer = make_mixer(small_space(), name)

    def draw(phase: Phase, step: int) -> Mixing:
        return mixer.sample(moment(phase), step=step)

    first, again = draw("alpha", 5), draw("alpha", 5)
    assert all(torch.equal(a, b) for a, b in zip(first.tensors(), again.tensors(), strict=True))
    assert all(first[kind].active_LN == again[kind].active_LN for kind in first)
    if name not in ("softmax", "sigmoid"):
        for other in (draw("alpha", 6), draw("weights", 5)):
            assert not all(torch.equal(a, b) for a, b in zip(first.tensors(), other.tensors(), strict=True))


def test_masked_softmax_is_the_softmax_of_what_exists() -> None:
    alpha_LNK = random_alpha(3)
    p_LNK = masked_softmax(alpha_LNK, HOLES, 2.0)
    expected = [math.exp(float(alpha_LNK[0, 0, k]) / 2) for k in (0, 2, 3)]
    assert p_LNK[0, 0, [0, 2, 3]].tolist() == pytest.approx([e / sum(expected) for e in expected])
