"""Controllers that learn from a reward by policy gradients: REINFORCE, as ENAS uses it, and PPO."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from supernet.decisions import Decisions, Values
from supernet.interfaces import State, Strategy
from supernet.runtime.random import generator
from supernet.schema.strategies import PpoConfig, ReinforceConfig
from supernet.strategies.policy import LstmPolicy, Rollout


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


class PolicyGradient(Strategy):
    """An LSTM policy that learns from the rewards of batches that it drew, by REINFORCE or by PPO.

    ENAS (arXiv:1802.03268), section 2.2: ascend the mean over a batch of (R - b) log pi(architecture); the entropy,
    times its weight, is added to R, as published (a constant, without gradient). With ``clip``, :func:`clipped` takes
    the place of (R - b) log pi, for several passes over each batch; in the first one, both have the same gradient.
    """

    def __init__(self, config: ReinforceConfig, *, decisions: Decisions, seed: int) -> None:
        self.config, self.seed = config, seed
        ppo = config if isinstance(config, PpoConfig) else None
        self.passes: int = 1 if ppo is None else ppo.passes
        self.clip: float | None = None if ppo is None else ppo.clip
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
        with torch.no_grad():
            rollout = self.policy.sample(self.config.batch, generator(self.seed, "controller/sample", self.updates))
        return [tuple(row) for row in rollout.values_BV.tolist()]

    def tell(self, asked: Sequence[Values], rewards: Sequence[tuple[float, ...]]) -> None:
        values_BV = torch.tensor(asked)
        rollout = self.policy.evaluate(values_BV)
        old_log_prob_B, advantage_B = rollout.log_prob_B.detach(), self._advantages(rollout, rewards)
        for i in range(self.passes):
            log_prob_B = rollout.log_prob_B if i == 0 else self.policy.evaluate(values_BV).log_prob_B
            if self.clip is None:
                gain_B = advantage_B * log_prob_B
            else:
                gain_B = clipped(log_prob_B, old_log_prob_B, advantage_B, self.clip)
            self.adam.zero_grad()
            (-gain_B.mean()).backward()
            self.adam.step()
        self.updates += 1

    def _advantages(self, rollout: Rollout, rewards: Sequence[tuple[float, ...]]) -> Tensor:
        entropy_B = rollout.entropy_B.detach()
        self.entropy = float(entropy_B.mean())
        bonus = (self.config.entropy_weight * entropy_B).tolist()
        return self.baseline.advantages([reward[0] + b for reward, b in zip(rewards, bonus, strict=True)])

    def figures(self) -> dict[str, float]:
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


def clipped(log_prob_B: Tensor, old_log_prob_B: Tensor, advantage_B: Tensor, clip: float) -> Tensor:
    """PPO (arXiv:1707.06347), eq. 7: min(r A, clip(r, 1 - eps, 1 + eps) A), for each sample."""
    ratio_B = (log_prob_B - old_log_prob_B).exp()
    return torch.minimum(ratio_B * advantage_B, ratio_B.clamp(1 - clip, 1 + clip) * advantage_B)
