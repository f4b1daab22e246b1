"""Strategies: ways to choose the next subgraph from the rewards of those before. They ask and are told."""

from __future__ import annotations

import importlib
from typing import Any

from supernet.decisions import Decisions
from supernet.interfaces import Strategy

STRATEGIES = {
    "random_search": "evolve:RandomSearch",
    "evolution": "evolve:Evolution",
    "local_search": "evolve:LocalSearch",
    "reinforce": "reinforce:PolicyGradient",
    "ppo": "reinforce:PolicyGradient",
    "q_learning": "q_learning:QLearning",
    "bayesian": "with_optuna:OptunaStrategy",
    "nsga2": "with_optuna:OptunaStrategy",
}
"""The class of every strategy, imported when it is needed."""


def build_strategy(config: Any, decisions: Decisions, seed: int) -> Strategy:
    """The strategy that ``config.name`` names, at its first question."""
    module, _, attribute = STRATEGIES[config.name].partition(":")
    strategy: Strategy = getattr(importlib.import_module(f"supernet.strategies.{module}"), attribute)(
        config, decisions=decisions, seed=seed
    )
    return strategy
