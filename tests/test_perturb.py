"""Perturbations of p: how far they go, what they leave alone, and that an attack is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import make_search, run_epochs
from torch import Tensor

from supernet.config import compose
from supernet.errors import UserError
from supernet.modifiers.perturb_adversarial import PerturbAdversarial, attack
from supernet.modifiers.perturb_random import PerturbRandom
from supernet.modifiers.perturbation import Perturbed, ramp, renormalised
from supernet.schema.modifiers import PerturbAdversarialConfig, PerturbRandomConfig
from supernet.search import Search
from supernet.types import Group, GroupMixing, Mixing, Moment

MASK = ((True, True, True, False, False), (True, True, False, True, False), (True, False, False, False, False))
GROUP = Group(
    "normal", ("a", "b", "c", "d", "extra"), (0, 1, 0), (2, 2, 3), 1, MASK, keep=2, extras=frozenset({"extra"})
)
GROUPS = {"normal": GROUP}


def mixing(seed: int = 0) -> Mixing:
    """A softmax over what exists, with 0.7 in the extra's column, whose mask a modifier has set."""
    draw = torch.Generator().manual_seed(seed)
    alpha_LNK = torch.randn(1, 3, 5, generator=draw, dtype=torch.float64)
    p_LNK = alpha_LNK.masked_fill(~torch.tensor(MASK), float("-inf")).softmax(-1)
    p_LNK[..., 4] = 0.7
    mask = tuple((*row[:4], True) for row in MASK)
    return Mixing({"normal": GroupMixing(p_LNK, mask, torch.full((1, 3), 0.5, dtype=torch.float64))})


def moment(phase: str, progress: float = 0.5) -> Moment:
    return Moment(phase, 0, progress, progress)  # type: ignore[arg-type]


def quadratic(p: Mixing) -> tuple[Tensor, list[Tensor]]:
    """A loss that is curved in p, and what the callback gives of it."""
    leaf = p.leaf()
    weight = torch.arange(15, dtype=torch.float64).view(1, 3, 5).sin()
    loss = ((leaf["normal"].op_LNK - 0.3) ** 2 * weight).sum() + leaf["normal"].edge_LN.sum()  # type: ignore[union-attr]
    grads = torch.autograd.grad(loss, leaf.tensors())
    return loss.detach(), list(grads)


def by_hand(moved: list[float], mask: tuple[bool, ...], before: list[float]) -> list[float]:
    """Clamp and divide, number by number."""
    inside = [min(max(v, 0.0), 1.0) if here else 0.0 for v, here in zip(moved, mask, strict=True)]
    if sum(inside) == 0.0:
        best = max((k for k, here in enumerate(mask) if here), key=lambda k: moved[k])
        inside[best] = 1.0
    total = sum(inside)
    return [v / total if here else b for v, here, b in zip(inside, mask, before, strict=True)]


def test_what_is_moved_is_made_a_p_again() -> None:
    mask_NK, before = torch.tensor(MASK), mixing()["normal"].op_LNK
    draw = torch.Generator().manual_seed(1)
    moved = before + torch.empty_like(before).uniform_(-1, 1, generator=draw)
    moved[0, 1] = torch.tensor([-0.3, -0.1, 5.0, -0.2, 9.0])  # nothing is left: its largest becomes 1
    ours = renormalised(moved, before, mask_NK)[0].tolist()
    for n, row in enumerate(ours):
        assert row == pytest.approx(by_hand(moved[0, n].tolist(), MASK[n], before[0, n].tolist()))
    assert ours[1] == [0.0, 1.0, 0.0, 0.0, 0.7]


def test_epsilon_rises_as_published() -> None:
    config = PerturbRandomConfig()
    assert [ramp(config, moment("weights", e / 50)) for e in (0, 25, 49)] == pytest.approx(
        [0.03 + (0.3 - 0.03) * e / 50 for e in (0, 25, 49)]
    )


def in_ball_up_to_scale(q: Tensor, p: Tensor, epsilon: float) -> bool:
    """Whether some multiple of every decision's q is within epsilon of p, entries at the clamps of [0, 1] included."""
    for q_K, p_K, mask in zip(q[0].tolist(), p[0].tolist(), MASK, strict=True):
        low, high = 0.0, float("inf")
        for a, b, here in zip(q_K, p_K, mask, strict=True):
            if here and a > 0:
                low, high = max(low, (b - epsilon) / a), min(high, (b + epsilon) / a)
            elif here and b - epsilon > 1e-12:
                return False
        if low > high + 1e-9:
            return False
    return True


def test_an_attack_stays_in_the_ball_and_raises_the_loss() -> None:
    raised, found, by_chance = 0, 0.0, 0.0
    for seed in range(10):
        p, generator = mixing(seed), torch.Generator().manual_seed(seed)
        for epsilon in (0.01, 0.1):
            q = attack(Perturbed(p, GROUPS, "any"), quadratic, epsilon, 7, generator)["normal"]
            assert in_ball_up_to_scale(q, p["normal"].op_LNK, epsilon)
            assert not in_ball_up_to_scale(q, p["normal"].op_LNK, epsilon / 50) or torch.equal(q, p["normal"].op_LNK)
            perturbed = Perturbed(p, GROUPS, "any").at({"normal": q})
            before, after = quadratic(p)[0], quadratic(perturbed)[0]
            assert after >= before
            raised += int(after > before)
            noise = Perturbed(p, GROUPS, "any")
            found += float(after - before)
            by_chance += float(quadratic(noise.at(noise.moved(noise.noise(epsilon, generator))))[0] - before)
    assert raised >= 18
    assert found > 2 * abs(by_chance)


def test_an_attack_that_fails_leaves_p_as_it_was() -> None:
    p = mixing()

    def flat(here: Mixing) -> tuple[Tensor, list[Tensor]]:
        """The loss falls wherever one goes."""
        away = sum((t - b).abs().sum() for t, b in zip(here.tensors(), p.tensors(), strict=True))
        return -torch.as_tensor(away), [torch.ones_like(t) for t in here.tensors()]

    q = attack(Perturbed(p, GROUPS, "any"), flat, 0.1, 7, torch.Generator().manual_seed(0))
    assert torch.equal(q["normal"], p["normal"].op_LNK)


class Space:
    groups = (GROUP,)


class Bound:
    space = Space()


@pytest.fixture(params=["random", "adversarial"])
def part(request: pytest.FixtureRequest) -> Iterator[PerturbRandom | PerturbAdversarial]:
    made: PerturbRandom | PerturbAdversarial = (
        PerturbRandom(PerturbRandomConfig())
        if request.param == "random"
        else PerturbAdversarial(PerturbAdversarialConfig())
    )
    made.bind(Bound())  # type: ignore[arg-type]
    yield made


def test_only_the_weight_phase_is_perturbed_and_only_what_a_relaxation_knows(
    part: PerturbRandom | PerturbAdversarial,
) -> None:
    p = mixing()
    for phase in ("alpha", "evaluate", "derive"):
        assert part.edit_mixing(p, moment(phase), generator=torch.Generator(), gradient=None) is p
    moved = part.edit_mixing(p, moment("weights"), generator=torch.Generator().manual_seed(0), gradient=quadratic)
    ours, before = moved["normal"], p["normal"]
    assert not torch.equal(ours.op_LNK, before.op_LNK)
    torch.testing.assert_close(ours.op_LNK[..., :4].sum(-1), torch.ones(1, 3, dtype=torch.float64))
    assert torch.equal(ours.op_LNK[..., 4], before.op_LNK[..., 4]), "the extra column stays"
    assert not ours.op_LNK[0, 0, 3], "what does not exist stays absent"
    assert ours.edge_LN is before.edge_LN
    again = part.edit_mixing(p, moment("weights"), generator=torch.Generator().manual_seed(0), gradient=quadratic)
    assert torch.equal(again["normal"].op_LNK, ours.op_LNK), "one generator, one draw"


def test_to_gradients_of_alpha_the_perturbation_is_a_constant(part: PerturbRandom | PerturbAdversarial) -> None:
    p = mixing().leaf()
    moved = part.edit_mixing(p, moment("weights"), generator=torch.Generator().manual_seed(0), gradient=quadratic)
    down = torch.randn(1, 3, 5, dtype=torch.float64)
    (grad,) = torch.autograd.grad(moved["normal"].op_LNK, p["normal"].op_LNK, down)
    torch.testing.assert_close(grad, down)


def test_a_sampled_operation_cannot_be_perturbed(part: PerturbRandom | PerturbAdversarial) -> None:
    sampled = Mixing({"normal": GroupMixing(mixing()["normal"].op_LNK, MASK, active_LN=((0, 0, 0),))})
    with pytest.raises(UserError, match="evaluates one operation an edge"):
        part.edit_mixing(sampled, moment("weights"), generator=torch.Generator(), gradient=quadratic)


def trained(folder: Path, *overrides: str) -> Search:
    return run_epochs(make_search(folder, "limit.steps=2", *overrides))


@pytest.mark.parametrize(("engine", "name"), [("plain", "perturb_adversarial"), ("banked", "perturb_random")])
def test_a_search_learns_other_weights_and_none_at_a_ball_of_nothing(engine: str, name: str, tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", f"engine={engine}")
    chosen = [f"engine={engine}", f"modifier=[{name}]"]
    chosen += ["modifier.perturb_adversarial.steps=2"] if name == "perturb_adversarial" else []
    on = trained(tmp_path / name, *chosen)
    off = trained(
        tmp_path / f"{name}-off", *chosen, f"modifier.{name}.epsilon_start=0", f"modifier.{name}.epsilon_end=0"
    )
    assert not torch.equal(on.weights[0], plain.weights[0])
    torch.testing.assert_close(off.weights[0], plain.weights[0], rtol=1e-3, atol=1e-5)


def test_an_attack_leaves_no_trace_and_raises_the_loss_of_the_network(engine: str, tmp_path: Path) -> None:
    search = make_search(tmp_path, "modifier=[perturb_adversarial]", "search.statistics=running", f"engine={engine}")
    search.begin_epoch()
    search.train_step()  # from zero, the first weights' loss hardly depends on p
    net, ctx = search.parts.net, search.context()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    perturbed = ctx.mixing("weights")
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items()), "buffers are put back"
    assert all(w.requires_grad and w.grad is None for w in search.weights)
    clean = Mixing({name: search.mean("evaluate")[name] for name in perturbed})
    with torch.no_grad():
        worse, loss = ctx.run("weights", perturbed).loss, ctx.run("weights", clean).loss
    assert worse > loss


def test_two_perturbations_refuse_each_other_and_sigmoids() -> None:
    with pytest.raises(UserError, match="both move the p"):
        compose(["modifier=[perturb_random,perturb_adversarial]"])
