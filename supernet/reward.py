"""What a subgraph of the supernet is worth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from supernet.decisions import Decisions, Values
from supernet.errors import UserError
from supernet.interfaces import State
from supernet.modifiers.cost import edges_into, expected_cost, uniform
from supernet.schema.strategies import QueriesConfig
from supernet.search import Search
from supernet.spaces.costs import Candidate, cost_table, milliseconds, multiply_adds, parameters


class Reward:
    """Judges subgraphs by the shared weights, on the part of the training split that no weight was trained on.

    ``reward = a1 * accuracy + a2 * loss``, times ``(cost / target) ** exponent`` where a cost is named, as in MnasNet
    (arXiv:1807.11626), eq. 2, with alpha = beta = exponent. The cost is that of the subgraph in the supernet. Latencies
    are measured once and kept in the state.
    """

    def __init__(self, search: Search, config: QueriesConfig, decisions: Decisions) -> None:
        self.search, self.config, self.decisions = search, config, decisions
        self.device = search.services.device
        self.groups = {group.name: group for group in search.parts.space.groups}
        self.into = {name: edges_into(group, self.device) for name, group in self.groups.items()}
        self.tables: dict[str, torch.Tensor] | None = None
        self.target = config.target
        if config.cost == "none" and config.target is not None:
            raise UserError(
                f"derive.target={config.target:g} needs a cost: choose derive.cost, or leave the target out"
            )
        if config.cost != "none" and config.accuracy < 0:
            raise UserError(
                "derive.accuracy is negative: a product with a cost needs a reward that is positive when good"
            )

    def __call__(self, values: Values) -> dict[str, float]:
        """``accuracy``, ``loss``, ``reward`` and, where it is asked for, ``cost``."""
        p = self.decisions.mixing(values, self.device)
        figures = self.search.evaluate(p)
        figures["reward"] = self.config.accuracy * figures["accuracy"] + self.config.loss * figures["loss"]
        if self.config.cost != "none":
            cost = float(expected_cost(p, self._tables(), self.into))
            if self.target is None:
                even = uniform(self.groups, self.device)
                self.target = float(expected_cost(even, self._tables(), self.into))
            figures["cost"] = cost
            figures["reward"] *= (max(cost / self.target, 1e-9)) ** self.config.exponent
        return figures

    def objectives(self, figures: dict[str, float]) -> tuple[float, ...]:
        """What a strategy is told: the reward; with a cost, also what several objectives trade against it."""
        return (figures["reward"], -figures["cost"]) if "cost" in figures else (figures["reward"],)

    def _tables(self) -> dict[str, torch.Tensor]:
        if self.tables is None:
            image = (self.search.parts.task.in_channels, *self.search.parts.task.data.train.size)
            measures: dict[str, Callable[[Candidate], float]] = {
                "flops": multiply_adds,
                "params": parameters,
                "latency": partial(milliseconds, device=self.device),
            }
            self.tables = cost_table(self.search.parts.space, image, measures[self.config.cost], self.device)
        return self.tables

    def state_dict(self) -> State:
        return {"tables": self.tables}

    def load_state_dict(self, state: State) -> None:
        tables = state["tables"]
        self.tables = None if tables is None else {name: table.to(self.device) for name, table in tables.items()}
