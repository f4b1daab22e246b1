"""The configuration of a run, written into its directory, read back, and compared with another on resume."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from supernet.config.check import OPTIONAL_GROUPS, PART_GROUPS, check_keys, check_values
from supernet.config.explain import explain
from supernet.errors import UserError
from supernet.registry import PARTS
from supernet.runtime.files import read_text
from supernet.schema import Config

FREE = {
    "run_dir", "resume", "plugins", "benchmark.path", "task.root", "task.download", "task.workers",
    "checkpoint.minutes", "checkpoint.keep_last", "checkpoint.keep_best", "nonfinite.policy", "nonfinite.factor",
    "nonfinite.rollbacks", "memory.on_oom",
}  # fmt: skip
"""Keys that may change on resume: they say where things are, how fast they come, what stays of them, and what to do
should a step fail; not what is computed."""

FREE_NODE = "watch."
"""Below it stands what is looked at, which changes nothing that is computed."""

INEXACT = {
    "device", "engine", "threads", "memory_format", "compile", "deterministic", "task.resident_mb",
    "memory.micro_batches",
}  # fmt: skip
"""Keys that may change on resume, at the price of results that are no longer identical to the last bit."""


MAX_CHARACTERS = 200_000
"""Of a configuration, which has a few thousand; the reader's time grows with the text."""


def to_yaml(config: Config) -> str:
    """Every value of ``config`` as YAML without interpolations."""
    return str(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True))


def read_config(path: Path) -> Config:
    """The configuration in a run's file. Raises UserError where it cannot be read, or is none."""
    return from_yaml(read_text(path, MAX_CHARACTERS), source=str(path))


def from_yaml(text: str, *, source: str = "config.yaml") -> Config:
    """Read what :func:`to_yaml` wrote; ``source`` names the file in errors.

    The text is data: no interpolation is resolved and no plug-in it names is imported; parts of a plug-in are known
    when it has been imported before. Keys added to the schema since get their defaults. Raises UserError for anything
    that :func:`to_yaml` has not written.
    """
    saved = _plain(text, source)
    try:
        composed = OmegaConf.structured(Config)
        for group in PART_GROUPS:
            composed[group] = OmegaConf.structured(_part(group, saved.get(group), source))
        for group in OPTIONAL_GROUPS:
            if saved.get(group) is not None:
                composed[group] = OmegaConf.structured(_part(group, saved[group], source))
        modifiers = saved.get("modifier") or {}
        if not isinstance(modifiers, dict):
            raise UserError(f"{source}: modifier holds the chosen modifiers by name, not {type(modifiers).__name__}")
        for name, part in modifiers.items():
            composed["modifier"][name] = OmegaConf.structured(_part("modifier", part, source))
        composed.merge_with(saved)
        composed["run_dir"] = saved.get("run_dir", MISSING)
        check_keys(composed)
        config: Any = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise UserError(f"{source} is of another version: {explain(error)}") from error
    check_values(config)
    assert isinstance(config, Config)
    return config


class _NoAliases(yaml.SafeLoader):  # type: ignore[misc]
    """Plain YAML: with aliases, a few lines can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "a run writes no alias", self.peek_event().start_mark)
        return super().compose_node(parent, index)


def _plain(text: str, source: str) -> dict[str, Any]:
    """The keys and values of a text."""
    try:
        saved = yaml.load(text, _NoAliases) if len(text) <= MAX_CHARACTERS else None
    except yaml.YAMLError as error:
        raise UserError(f"{source} is damaged: {explain(error)}") from error
    except (ValueError, TypeError, RecursionError, OverflowError) as error:  # a date or a number that there is not
        raise UserError(f"{source} is damaged: {type(error).__name__}") from error
    if not isinstance(saved, dict) or not _is_plain(saved):
        raise UserError(f"{source} is not the configuration of a run, which holds plain keys and values")
    return saved


def _is_plain(saved: Any) -> bool:
    """Whether all keys are texts and all values are plain, with no interpolation among them."""
    rest = [saved]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            rest += [*value, *value.values()]
            if not all(isinstance(key, str) for key in value):
                return False
        elif isinstance(value, list):
            rest += value
        elif not (value is None or isinstance(value, (bool, int, float, str))) or "${" in str(value):
            return False
    return True


def _part(group: str, saved: Any, source: str) -> type:
    name = saved.get("name") if isinstance(saved, dict) else None
    part = PARTS.get((group, str(name)))
    if part is None:
        valid = [known for g, known in PARTS if g == group]
        raise UserError(
            f"{source}: {group} {name!r} is not known here; if a plug-in registers it, add plugins=[MODULE]",
            valid=valid,
        )
    return part.config


@dataclasses.dataclass(frozen=True)
class Differences:
    """What changed between two configurations, as ``key: old -> new``, by what it costs on resume."""

    free: tuple[str, ...] = ()
    inexact: tuple[str, ...] = ()


def compare(saved: Config, now: Config) -> Differences:
    """What a resume changes. Raises UserError with the list of keys that must not change."""
    old, new = dict(_leaves("", dataclasses.asdict(saved))), dict(_leaves("", dataclasses.asdict(now)))
    changed = {
        key: f"{key}: {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}"
        for key in {**old, **new}
        if key not in old or key not in new or old[key] != new[key]
    }
    free = {key for key in changed if key in FREE or key.startswith(FREE_NODE)}
    refused = [text for key, text in changed.items() if key not in free | INEXACT]
    if refused:
        raise UserError(
            "the run cannot go on with another configuration; give the same values, or another run_dir for a new run:"
            f" {'; '.join(refused)}"
        )
    return Differences(
        tuple(text for key, text in changed.items() if key in free),
        tuple(text for key, text in changed.items() if key in INEXACT),
    )


def _leaves(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value
