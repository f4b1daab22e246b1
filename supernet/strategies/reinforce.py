"""Controllers that learn from a reward by policy gradients: REINFORCE, as ENAS uses it, and PPO."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from supernet.decisions import Decisions, Values
from supernet.interfaces import State, Strategy
from supernet.runtime.random import generator
from supernet.schema.strategies import PpoConfig, ReinforceConfig
from supernet.strategies.policy import LstmPolicy


class Baseline:
    """ENAS (arXiv:1802.03268), section 2.2: a moving average of the rewards, b <- b - (1 - decay) (b - R).

    It begins at the first reward instead of at zero, where early advantages would all be positive.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.value: float | None = None

    def advantages(self, rewards: Sequence[float]) -> Tensor:
        """R - b for each reward in turn, b updated with that reward before, as published."""
        found = []
        for reward in rewards:
            self.value = reward if self.value is None else self.value - (1 - self.decay) * (self.value - reward)
            found.append(reward - self.value)
        return torch.tensor(found)


class Controller:
    """A policy with its optimiser and baseline: what REINFORCE and PPO share."""

    def __init__(self, config: ReinforceConfig, decisions: Decisions, seed: int) -> None:
        self.config, self.seed = config, seed
        self.policy = LstmPolicy(
            decisions.variables,
            hidden=config.hidden,
            temperature=config.temperature,
            tanh_constant=config.tanh_constant,
            op_tanh_reduce=config.op_tanh_reduce,
            generator=generator(seed, "controller/init"),
        )
        self.adam = torch.optim.Adam(self.policy.parameters(), lr=config.lr, betas=(0.0, 0.999), eps=1e-3)
        self.baseline = Baseline(config.baseline_decay)
        self.updates = 0
        self.entropy = 0.0

    def ask(self) -> list[Values]:
        """A batch of architectures from the policy as it is."""
        with torch.no_grad():
            rollout = self.policy.sample(self.config.batch, generator(self.seed, "controller/sample", self.updates))
        return [tuple(row) for row in rollout.values_BV.tolist()]

    def advantages(self, entropy_B: Tensor, rewards: Sequence[tuple[float, ...]]) -> Tensor:
        """Advantages of rewards to which the entropy bonus is added, as published (a constant, no gradient)."""
        self.entropy = float(entropy_B.mean())
        bonus = self.config.entropy_weight * entropy_B
        return self.baseline.advantages([r[0] + b for r, b in zip(rewards, bonus.tolist(), strict=True)])

    def descend(self, loss: Tensor) -> None:
        """One step of Adam."""
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()

    def figures(self) -> dict[str, float]:
        """Entropy of the policy and the baseline."""
        return {"controller_entropy": self.entropy, "baseline": self.baseline.value or 0.0}

    def state_dict(self) -> State:
        return {
            "policy": self.policy.state_dict(),
            "adam": self.adam.state_dict(),
            "baseline": self.baseline.value,
            "updates": self.updates,
            "entropy": self.entropy,
        }

    def load_state_dict(self, state: State, /) -> None:
        self.policy.load_state_dict(state["policy"])
        self.adam.load_state_dict(state["adam"])
        self.baseline.value, self.updates = state["baseline"], state["updates"]
        self.entropy = state["entropy"]


class Reinforce(Strategy):
    """ENAS (arXiv:1802.03268), section 2.2: ascend the mean over a batch of (R - b) grad log pi(architecture)."""

    def __init__(self, config: ReinforceConfig, *, decisions: Decisions, seed: int) -> None:
        self.controller = Controller(config, decisions, seed)

    def ask(self) -> list[Values]:
        return self.controller.ask()

    def tell(self, asked: Sequence[Values], rewards: Sequence[tuple[float, ...]]) -> None:
        controller = self.controller
        rollout = controller.policy.evaluate(torch.tensor(asked))
        advantage_B = controller.advantages(rollout.entropy_B.detach(), rewards)
        controller.descend(-(advantage_B * rollout.log_prob_B).mean())
        controller.updates += 1

    def figures(self) -> dict[str, float]:
        return self.controller.figures()

    def state_dict(self) -> State:
        return self.controller.state_dict()

    def load_state_dict(self, state: State, /) -> None:
        self.controller.load_state_dict(state)


class Ppo(Strategy):
    """PPO (arXiv:1707.06347), eq. 7: ascend the mean of min(r A, clip(r, 1 - eps, 1 + eps) A),
    r = pi(architecture) / pi_old(architecture), several times for each batch; the advantages are those of REINFORCE."""

    def __init__(self, config: PpoConfig, *, decisions: Decisions, seed: int) -> None:
        self.controller = Controller(config, decisions, seed)
        self.config = config

    def ask(self) -> list[Values]:
        return self.controller.ask()

    def tell(self, asked: Sequence[Values], rewards: Sequence[tuple[float, ...]]) -> None:
        controller, values_BV = self.controller, torch.tensor(asked)
        with torch.no_grad():
            old = controller.policy.evaluate(values_BV)
        advantage_B = controller.advantages(old.entropy_B, rewards)
        for _ in range(self.config.passes):
            log_prob_B = controller.policy.evaluate(values_BV).log_prob_B
            controller.descend(-clipped(log_prob_B, old.log_prob_B, advantage_B, self.config.clip).mean())
        controller.updates += 1

    def figures(self) -> dict[str, float]:
        return self.controller.figures()

    def state_dict(self) -> State:
        return self.controller.state_dict()

    def load_state_dict(self, state: State, /) -> None:
        self.controller.load_state_dict(state)


def clipped(log_prob_B: Tensor, old_log_prob_B: Tensor, advantage_B: Tensor, clip: float) -> Tensor:
    """PPO (arXiv:1707.06347), eq. 7: min(r A, clip(r, 1 - eps, 1 + eps) A), for each sample."""
    ratio_B = (log_prob_B - old_log_prob_B).exp()
    return torch.minimum(ratio_B * advantage_B, ratio_B.clamp(1 - clip, 1 + clip) * advantage_B)
