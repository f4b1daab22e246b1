"""Differentiable and weight-sharing neural architecture search: a method is a composition of small parts.

From Python, the commands are functions and the parts are classes:

    config = supernet.compose(["+experiment=darts_digits", "search.epochs=5", "run_dir=checkpoints/mine"])
    report = supernet.train.train(config)
    child = supernet.load_child("checkpoints/mine")

Names are imported when they are used, so that ``import supernet`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from supernet.child import load_child
    from supernet.config import compose
    from supernet.registry import register
    from supernet.spaces.darts import DartsSpace
    from supernet.spaces.genotype import Genotype, load_genotype
    from supernet.spaces.ops import register_operation
    from supernet.types import GroupMixing, Mixing

__version__ = "0.1.0"

_HOMES = {
    "load_child": "supernet.child",
    "compose": "supernet.config",
    "register": "supernet.registry",
    "DartsSpace": "supernet.spaces.darts",
    "Genotype": "supernet.spaces.genotype",
    "load_genotype": "supernet.spaces.genotype",
    "register_operation": "supernet.spaces.ops",
    "GroupMixing": "supernet.types",
    "Mixing": "supernet.types",
}

__all__ = [
    "DartsSpace",
    "Genotype",
    "GroupMixing",
    "Mixing",
    "compose",
    "load_child",
    "load_genotype",
    "register",
    "register_operation",
]


def __getattr__(name: str) -> Any:
    if name in ("train", "retrain", "predict"):  # the commands
        return importlib.import_module(f"supernet.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'supernet' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
