"""The tables of parts. A part is named in YAML by its registry name; its typed dataclass *is* the option of its group.

This module imports neither torch nor Hydra, so that a wrong configuration answers at once. A target is text,
``module:attribute``, that *code* registers: no configuration file can name a callable.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Part:
    """A row: ``group`` and ``name`` say where it stands in YAML, ``config`` what it takes, ``target`` what builds it.

    ``needs`` names for a group the options of which one must be chosen beside it (of ``modifier``: one must be among
    them); ``refuses`` gives for ``group=name`` the reason why the two make no sense together.
    """

    group: str
    name: str
    config: type
    target: str | Callable[..., Any]
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Callable[..., Any]:
        """The callable that builds the part, imported when it is needed."""
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        return loaded


PARTS: dict[tuple[str, str], Part] = {}


def register(
    group: str,
    name: str,
    config: type,
    target: str | Callable[..., Any],
    *,
    needs: Mapping[str, tuple[str, ...]] | None = None,
    refuses: Mapping[str, str] | None = None,
) -> None:
    """Add a part; a plug-in does this when it is imported (``plugins=[my_package.parts]``).

    ``config`` is a dataclass whose ``name`` field defaults to ``name``; ``target`` is called as ``target(config, ...)``
    with what the group hands to its parts (see ``supernet.compose``).
    """
    PARTS[group, name] = Part(group, name, config, target, needs or {}, refuses or {})


def build(group: str, config: Any, **given: Any) -> Any:
    """Build the part that ``config.name`` names."""
    return PARTS[group, config.name].load()(config, **given)
