"""Configuration: composing, checking, saving and comparing it. Imports no torch, so that an error answers at once."""

from supernet.config.command import entry
from supernet.config.composing import apply_limit, compose
from supernet.config.saved import Differences, compare, from_yaml, read_config, to_yaml

__all__ = ["Differences", "apply_limit", "compare", "compose", "entry", "from_yaml", "read_config", "to_yaml"]
