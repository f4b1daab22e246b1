"""Q-learning over the variables of a space."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from supernet.decisions import Decisions, Values
from supernet.interfaces import State, Strategy
from supernet.runtime.random import generator
from supernet.schema.strategies import QLearningConfig

Table = list[list[list[float]]]
"""Q of every variable, previous value and value: ``table[i][before][value]``."""


class QLearning(Strategy):
    """MetaQNN (arXiv:1611.02167), section 4: an agent sets variable after variable, epsilon-greedily, and learns by

        Q(s, u) <- (1 - lr) Q(s, u) + lr (r + max over u' of Q(s', u'))

    (eq. 3 with discount 1), from experience replay. As there, a state is the position and what was chosen last, the
    reward comes after the last choice alone, updates go through an architecture backwards, and epsilon falls in steps.
    The published schedule (1,500 of 2,700 architectures at epsilon 1, then .9, .8, ... .1) is scaled to ``queries``.
    """

    def __init__(self, config: QLearningConfig, *, decisions: Decisions, seed: int) -> None:
        self.config, self.decisions, self.seed = config, decisions, seed
        sizes = [v.size for v in decisions.variables]
        self.table: Table = [
            [[config.initial] * size for _ in range(before)]
            for before, size in zip([1, *sizes[:-1]], sizes, strict=True)
        ]
        self.replay_values: list[Values] = []
        self.replay_rewards: list[float] = []

    @property
    def epsilon(self) -> float:
        """Share of choices made at random, after as many architectures as there are in the replay."""
        return epsilon_after(len(self.replay_values) / self.config.queries)

    def ask(self) -> list[Values]:
        draw = generator(self.seed, "q_learning/ask", len(self.replay_values))
        values: list[int] = []
        for i, variable in enumerate(self.decisions.variables):
            row = self.table[i][values[-1] if values else 0]
            if float(torch.rand((), generator=draw)) < self.epsilon:
                values.append(int(torch.randint(variable.size, (), generator=draw)))
            else:
                best = [value for value, q in enumerate(row) if q == max(row)]  # ties are broken at random
                values.append(best[int(torch.randint(len(best), (), generator=draw))])
        return [tuple(values)]

    def tell(self, asked: Sequence[Values], rewards: Sequence[tuple[float, ...]]) -> None:
        self.replay_values += asked
        self.replay_rewards += [reward[0] for reward in rewards]
        draw = generator(self.seed, "q_learning/replay", len(self.replay_values))
        for index in torch.randint(len(self.replay_values), (self.config.replay,), generator=draw).tolist():
            update(self.table, self.replay_values[index], self.replay_rewards[index], self.config.lr)

    def figures(self) -> dict[str, float]:
        return {"epsilon": self.epsilon, "q_best": max(self.table[0][0])}

    def state_dict(self) -> State:
        return {
            "table": self.table,
            "values": [list(v) for v in self.replay_values],
            "rewards": list(self.replay_rewards),
        }

    def load_state_dict(self, state: State, /) -> None:
        self.table = state["table"]
        self.replay_values = [tuple(v) for v in state["values"]]
        self.replay_rewards = list(state["rewards"])


def update(table: Table, values: Values, reward: float, lr: float) -> None:
    """MetaQNN (arXiv:1611.02167), eq. 3, for every choice of one architecture, the last first; in place."""
    for i in reversed(range(len(values))):
        row = table[i][values[i - 1] if i else 0]
        target = reward if i + 1 == len(values) else max(table[i + 1][values[i]])
        row[values[i]] += lr * (target - row[values[i]])


def epsilon_after(share: float) -> float:
    """MetaQNN (arXiv:1611.02167), table 2: 1 for 1,500 of 2,700 architectures, .9 to .7 for 100 each, .6 to .1 for 150
    each."""
    done = share * 2700
    if done < 1500:
        return 1.0
    if done < 1800:
        return 0.9 - 0.1 * int((done - 1500) // 100)
    return max(0.1, 0.6 - 0.1 * int((done - 1800) // 150))
