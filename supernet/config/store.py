"""Where Hydra finds what can be named: the registry's parts, the schema and the ``conf`` tree. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from supernet import schema
from supernet.registry import PARTS, Part

_PACKAGE = Path(__file__).resolve().parent.parent

CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""The ``conf`` tree, absolute: inside the package in a wheel, beside it in a checkout or an editable install."""


_STORED: dict[tuple[str, str], Part] = {}

ConfigStore.instance().store(name="schema", node=schema.Config)


def store_parts() -> None:
    """Make every registered part an option of its group; cheap to call again, for what was registered since.

    A part's typed dataclass *is* the option. Modifiers stand side by side, so each gets a package of its own.
    """
    store = ConfigStore.instance()
    for (group, name), part in PARTS.items():
        if _STORED.get((group, name)) is part:
            continue
        _STORED[group, name] = part
        node = OmegaConf.structured(part.config)
        node.name = name  # two names may share a dataclass
        store.store(group=group, name=name, node=node, package=f"modifier.{name}" if group == "modifier" else None)
