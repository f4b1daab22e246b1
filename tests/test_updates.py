"""The gradients of alpha, against closed forms and against autograd through the look-ahead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from supernet.interfaces import StepContext, StepResult
from supernet.schema import AlphaConfig
from supernet.schema.updates import FirstOrderConfig, SingleLevelConfig
from supernet.spaces.darts import DartsSpace
from supernet.types import GroupMixing, Mixing, Moment, Phase
from supernet.updates import pull_back
from supernet.updates.first_order import FirstOrder
from supernet.updates.single_level import SingleLevel
from supernet.updates.unrolled import hypergradient, mixed_product, virtual_step

XI, MOMENTUM, DECAY = 0.05, 0.9, 0.01
Loss = Callable[[Phase, Mixing], Tensor]


def context(net: nn.Module, alphas: list[nn.Parameter], mixing: Callable[[Phase], Mixing], loss: Loss) -> StepContext:
    weights = list(net.parameters())
    return StepContext(
        net=net,
        mixing=mixing,
        run=lambda phase, p: StepResult(loss(phase, p), {}),
        alpha_term=lambda: None,
        sync_grads=lambda grads: None,
        guard=lambda grads: None,
        architecture=alphas,
        weights=weights,
        weight_optimizer=torch.optim.SGD(weights, lr=XI, momentum=MOMENTUM, weight_decay=DECAY),
        step=0,
        moment=lambda phase: Moment(phase, 0, 0.0, 0.0),
    )


class Quadratic(nn.Module):
    """L_train = |w - A p|^2 / 2 and L_val = |w - b|^2 / 2 + c p, with p = alpha."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        self.w = nn.Parameter(random(6))
        self.matrix, self.b, self.c = random(6, 4), random(6), random(4)
        self.alpha = random(1, 2, 2)

    def loss(self, phase: Phase, p: Mixing) -> Tensor:
        flat = p["only"].op_LNK.flatten()
        if phase == "weights":
            return (self.w - self.matrix @ flat).square().sum() / 2
        return (self.w - self.b).square().sum() / 2 + self.c @ flat


def quadratic_context(net: Quadratic) -> StepContext:
    alpha = nn.Parameter(net.alpha)
    mask = ((True, True), (True, True))
    return context(net, [alpha], lambda phase: Mixing({"only": GroupMixing(alpha * 1, mask)}), net.loss)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("with_momentum", [False, True])
def test_unrolled_equals_the_closed_form_on_a_quadratic_problem(seed: int, with_momentum: bool) -> None:
    net = Quadratic(seed)
    ctx = quadratic_context(net)
    buffer = torch.zeros(6, dtype=torch.float64)
    if with_momentum:
        buffer = torch.randn(6, dtype=torch.float64)
        ctx.weight_optimizer.state[ctx.weights[0]]["momentum_buffer"] = buffer.clone()
    w, p = net.w.detach().clone(), net.alpha.flatten()
    looked_ahead = w - XI * (MOMENTUM * buffer + w - net.matrix @ p + DECAY * w)
    expected = net.c + XI * net.matrix.T @ (looked_ahead - net.b)
    loss, (grad,) = hypergradient(ctx, epsilon=0.01)
    torch.testing.assert_close(grad.flatten(), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(loss, (looked_ahead - net.b).square().sum() / 2 + net.c @ p)
    assert torch.equal(net.w.detach(), w), "weights come back bit for bit"


def test_the_virtual_step_is_the_step_of_sgd() -> None:
    net = Quadratic(0)
    ctx = quadratic_context(net)
    sgd = ctx.weight_optimizer
    ctx.run("weights", ctx.mixing("weights")).loss.backward()
    sgd.step()  # so that there is momentum
    xi, (weight,), (step,) = virtual_step(ctx, ctx.mixing("weights").detach())
    before = weight.detach().clone()
    sgd.zero_grad()
    ctx.run("weights", ctx.mixing("weights")).loss.backward()
    sgd.step()
    assert xi == XI
    torch.testing.assert_close(step, weight.detach() - before)


def test_the_finite_difference_is_the_mixed_second_derivative_on_a_quadratic_problem() -> None:
    net = Quadratic(1)
    ctx = quadratic_context(net)
    vector_W = torch.randn(6, dtype=torch.float64)
    (found,) = mixed_product(ctx, ctx.mixing("weights").leaf(), [vector_W], 0.01)
    torch.testing.assert_close(found.flatten(), -net.matrix.T @ vector_W)  # d2 |w - A p|^2 / 2 / dp dw is -A


def test_first_order_and_single_level_move_alpha_against_their_own_gradient() -> None:
    net = Quadratic(0)
    ctx = quadratic_context(net)
    alpha = ctx.architecture[0]
    before = alpha.detach().clone()
    settings = {"weight_decay": 0.0}
    FirstOrder(FirstOrderConfig(**settings), alpha=AlphaConfig(lr=0.1), architecture=[alpha]).step(ctx)
    # Adam's first step is the rate times the sign of the gradient, here dL_val/dp at fixed weights, that is c.
    torch.testing.assert_close(alpha.detach() - before, -0.1 * net.c.sign().view_as(alpha), rtol=1e-5, atol=0)

    before = alpha.detach().clone()
    single = SingleLevel(SingleLevelConfig(**settings), alpha=AlphaConfig(lr=0.1), architecture=[alpha])
    assert single.step(ctx) == {}
    p = ctx.mixing("weights")
    leaf = p.leaf()
    ctx.run("weights", leaf).loss.backward()
    expected = -net.matrix.T @ (net.w.detach() - net.matrix @ before.flatten())
    single.after_weights(ctx, p, [t.grad for t in leaf.tensors()])
    torch.testing.assert_close(alpha.detach() - before, -0.1 * expected.sign().view_as(alpha), rtol=1e-5, atol=0)


def small_supernet(statistics: str, engine: str) -> tuple[nn.Module, dict[str, nn.Parameter], DartsSpace]:
    operations = ("none", "skip_connect", "avg_pool_3x3", "sep_conv_3x3")
    space = DartsSpace(
        2, 3, nodes=2, operations=operations, search_cells=3, search_channels=2, statistics=statistics, engine=engine
    )
    torch.manual_seed(0)
    net = space.build_supernet().double()
    alphas = {g.name: nn.Parameter(torch.randn(1, g.decisions, 4, dtype=torch.float64)) for g in space.groups}
    return net, alphas, space


def softmaxed(alphas: dict[str, nn.Parameter], space: DartsSpace) -> Mixing:
    return Mixing({g.name: GroupMixing(alphas[g.name].softmax(-1), g.mask_NK) for g in space.groups})


@pytest.mark.parametrize("engine", ["plain", "banked"])
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_unrolled_equals_autograd_through_the_look_ahead_of_a_supernet(statistics: str, engine: str) -> None:
    net, alphas, space = small_supernet(statistics, engine)
    x = {phase: torch.randn(16, 2, 8, 8, dtype=torch.float64) for phase in ("weights", "alpha")}
    y = torch.arange(16) % 3

    def loss(phase: Phase, p: Mixing) -> Tensor:
        return nn.functional.cross_entropy(net(x[phase], p), y)

    ctx = context(net, list(alphas.values()), lambda phase: softmaxed(alphas, space), loss)
    buffers = [b.clone() for b in net.buffers()]
    _, grads = hypergradient(ctx, epsilon=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(buffers, net.buffers(), strict=True)), "no trace in the buffers"

    # The look-ahead needs second derivatives, which the plain modules have; the weights are the same.
    reference, _, _ = small_supernet(statistics, "plain")
    named = dict(reference.named_parameters())

    def functional(phase: Phase, weights: dict[str, Tensor]) -> Tensor:
        logits = torch.func.functional_call(reference, weights, (x[phase], softmaxed(alphas, space)))
        return nn.functional.cross_entropy(logits, y)

    inner = torch.autograd.grad(functional("weights", named), list(named.values()), create_graph=True)
    ahead = {n: w - XI * (g + DECAY * w) for (n, w), g in zip(named.items(), inner, strict=True)}
    expected = torch.autograd.grad(functional("alpha", ahead), list(alphas.values()))
    for ours, exact in zip(grads, expected, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-7)
    plain = torch.autograd.grad(functional("alpha", named), list(alphas.values()))
    assert any((p - e).abs().max() > 1e-3 * e.abs().max() for p, e in zip(plain, expected, strict=True)), (
        "the second-order term must be visible, or the test shows nothing"
    )


def test_pull_back_gives_zero_where_p_has_no_graph() -> None:
    alpha = nn.Parameter(torch.zeros(1, 2, 2))
    p = Mixing({"g": GroupMixing(torch.ones(1, 2, 2), ((True, True),) * 2)})
    (grad,) = pull_back(p, [torch.ones(1, 2, 2)], [alpha])
    assert torch.equal(grad, torch.zeros_like(alpha))
