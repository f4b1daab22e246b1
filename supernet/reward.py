"""What a subgraph of the supernet is worth."""

from __future__ import annotations

import statistics

import torch

from supernet.decisions import Decisions, Values
from supernet.errors import UserError
from supernet.interfaces import State
from supernet.runtime.random import generator
from supernet.schema.strategies import RewardConfig
from supernet.spaces.child_costs import child_cost

RANDOM_CHILDREN = 9
"""The target of a cost, where none is given, is the median of this many."""


class Reward:
    """``reward = a1 * accuracy + a2 * loss``, times ``(cost / target) ** exponent`` where a cost is named, as in
    MnasNet (arXiv:1807.11626), eq. 2, with alpha = beta = exponent.

    The cost is that of the child, as it would be retrained. Costs are kept in the state, since latencies are measured.
    ``key`` is where the settings stand in the configuration.
    """

    def __init__(
        self,
        config: RewardConfig,
        decisions: Decisions,
        *,
        size: tuple[int, int],
        device: torch.device,
        seed: int,
        key: str = "derive",
    ) -> None:
        self.config, self.decisions, self.size, self.device, self.seed = config, decisions, size, device, seed
        self.costs: dict[Values, float] = {}
        self.target = config.target
        if config.cost == "none" and config.target is not None:
            raise UserError(f"{key}.target={config.target:g} needs a cost: choose {key}.cost, or leave the target out")
        if config.cost != "none" and config.accuracy < 0:
            raise UserError(
                f"{key}.accuracy is negative: a product with a cost needs a reward that is positive when good"
            )

    def __call__(self, values: Values, judged: dict[str, float]) -> dict[str, float]:
        """``judged`` (``accuracy`` and ``loss``) with ``reward`` and, where it is asked for, ``cost`` and ``score``,
        the reward without it."""
        figures = dict(judged)
        figures["reward"] = self.config.accuracy * figures["accuracy"] + self.config.loss * figures["loss"]
        if self.config.cost != "none":
            if self.target is None:
                draw = generator(self.seed, "reward/target")
                self.target = statistics.median(self.cost(self.decisions.random(draw)) for _ in range(RANDOM_CHILDREN))
            figures["score"], figures["cost"] = figures["reward"], self.cost(values)
            figures["reward"] *= (max(figures["cost"] / self.target, 1e-9)) ** self.config.exponent
        return figures

    def cost(self, values: Values) -> float:
        """Cost of the child, found once."""
        if values not in self.costs:
            genotype = self.decisions.genotype(values)
            self.costs[values] = child_cost(self.decisions.space, genotype, self.size, self.config.cost, self.device)
        return self.costs[values]

    def objectives(self, figures: dict[str, float]) -> tuple[float, ...]:
        """What a strategy is told: the reward; with a cost, also the two that several objectives trade."""
        if "cost" not in figures:
            return (figures["reward"],)
        return (figures["reward"], figures["score"], -figures["cost"])

    def state_dict(self) -> State:
        return {"costs": [[list(values), cost] for values, cost in self.costs.items()], "target": self.target}

    def load_state_dict(self, state: State) -> None:
        self.costs = {tuple(values): cost for values, cost in state["costs"]}
        self.target = state["target"]
