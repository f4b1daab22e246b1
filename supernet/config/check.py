"""The one check after composing: unknown and missing keys, parts that do not fit, values outside their range."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from supernet.errors import UserError
from supernet.registry import PARTS
from supernet.schema import Config

Field = dataclasses.Field[Any]

PART_GROUPS = ("task", "space", "relaxation", "update", "derive")
"""Groups of which a run has exactly one part; ``modifier`` holds any number."""

OPTIONAL_GROUPS = ("benchmark",)
"""Groups of which a run has one part or none (null)."""

_WORDS = {"ge": "of at least {}", "gt": "above {}", "le": "of at most {}", "lt": "below {}"}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def describe(owner: type, name: str) -> str:
    """What a field may be, in words: ``a whole number of at least 1``."""
    field = {f.name: f for f in dataclasses.fields(owner)}[name]
    meta = field.metadata
    if "choices" in meta:
        return "one of " + ", ".join(meta["choices"])
    if "meaning" in meta:
        return str(meta["meaning"])
    kind = typing.get_type_hints(owner)[name]
    bounds = " and ".join(words.format(meta[k]) for k, words in _WORDS.items() if k in meta)
    if typing.get_origin(kind) is list:
        item = typing.get_args(kind)[0]
        count = f"{meta['length']} " if "length" in meta else ""
        items = {int: "whole numbers", float: "numbers", str: "names"}.get(item, "values")
        rules = [f"each {bounds}"] * bool(bounds) + ["at least one and each once"] * meta.get("unique", False)
        return ", ".join([f"a list of {count}{items}", *rules])
    options = [k for k in typing.get_args(kind) if k is not type(None)]
    words = _KINDS.get(options[0] if options else kind, "a group of keys")
    optional = " or null" if type(None) in typing.get_args(kind) else ""
    return f"{words} {bounds}".rstrip() + optional


def check_keys(composed: DictConfig) -> None:
    """Refuse keys that are not in the schema, keys that were deleted, parts of no known type, and unset values.

    ``+key=value`` and YAML files without a schema get past Hydra's own check; this is what holds them.
    """
    for group in PART_GROUPS:
        if OmegaConf.is_missing(composed, group) or group not in composed:
            raise UserError(f"{group} is not chosen", valid=options_of(group))
        _check_part(group, group, composed[group])
    for group in OPTIONAL_GROUPS:
        if composed.get(group) is not None:
            _check_part(group, group, composed[group])
    for name, node in composed.get("modifier", {}).items():
        _check_part("modifier", f"modifier.{name}", node)
    _check_node("", composed)


def options_of(group: str) -> list[str]:
    """The registered names of a group."""
    return [name for g, name in PARTS if g == group]


def _check_part(group: str, key: str, node: Any) -> None:
    if not isinstance(node, DictConfig) or not dataclasses.is_dataclass(OmegaConf.get_type(node)):
        raise UserError(
            f"{key}: the chosen option has no schema; a file begins with the part that it varies, 'defaults: [NAME]'",
            valid=options_of(group),
        )
    part = PARTS.get((group, str(node.get("name"))))
    if part is None or part.config is not OmegaConf.get_type(node):
        raise UserError(
            f"{key}.name={node.get('name')}: the name follows from the chosen option, {group}=NAME; do not set it",
            valid=options_of(group),
        )


def _check_node(prefix: str, node: DictConfig) -> None:
    kind = OmegaConf.get_type(node)
    if dataclasses.is_dataclass(kind):
        names = [f.name for f in dataclasses.fields(kind)]
        for key in map(str, node):
            if key not in names:
                raise UserError(f"{prefix}{key} is not a key", valid=names, got=str(key))
        for name in names:
            if name not in node and not OmegaConf.is_missing(node, name):
                raise UserError(f"{prefix}{name} was removed; every key must have a value")
    for key in map(str, node):
        if OmegaConf.is_missing(node, key):
            raise UserError(f"{prefix}{key} has no value: set it, {prefix}{key}=VALUE")
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            _check_node(f"{prefix}{key}.", child)


def check_values(config: Config) -> None:
    """Refuse values outside the bounds that the schema gives, and values that contradict each other."""
    check_bounds("", config)
    for phase, part in (("search", config.search), ("retrain", config.retrain)):
        if part.nesterov and part.momentum == 0:
            raise UserError(f"{phase}.nesterov=true needs a momentum: set {phase}.momentum above 0, or leave it out")
        if part.lr_min > part.lr:
            raise UserError(
                f"{phase}.lr_min={part.lr_min}: it must be at most {phase}.lr={part.lr}, where the schedule begins"
            )
        if 2 * (config.memory.micro_batches or 1) > part.batch:
            raise UserError(
                f"memory.micro_batches={config.memory.micro_batches} leaves less than 2 images of {phase}.batch="
                f"{part.batch} in a part, too few for a batch norm: set it to at most {part.batch // 2}"
            )


def check_bounds(prefix: str, owner: Any) -> None:
    """Refuse values of a configuration, or of a part of it, that are outside the bounds that the schema gives."""
    for key, node, field, value in _fields(prefix, owner):
        if not _possible(field, value):
            raise UserError(f"{key}={_text(value)}: it must be {describe(type(node), field.name)}")
        if not _finite(value):
            raise UserError(f"{key}={_text(value)}: it must be a finite number")


def check_together(config: Config) -> None:
    """Refuse parts that make no sense together, with the reason that one of them gives (:class:`.registry.Part`)."""
    chosen = {group: (getattr(config, group).name,) for group in PART_GROUPS} | {"modifier": tuple(config.modifier)}
    chosen |= {group: (part.name,) for group in OPTIONAL_GROUPS if (part := getattr(config, group)) is not None}
    for group, names in chosen.items():
        for name in names:
            part = PARTS[group, name]
            for other, wanted in part.needs.items():
                if not set(wanted) & set(chosen[other]):
                    raise UserError(
                        f"{group}={name} needs {other}={' or '.join(wanted)}: choose it, or leave {name} out"
                    )
            for other, reason in part.refuses.items():
                if other in {f"{g}={n}" for g, ns in chosen.items() for n in ns}:
                    raise UserError(f"{group}={name} does not go with {other}: {reason}")
    if config.watch.eigenvalue:
        _check_eigenvalue(config.watch.eigenvalue, {f"{g}={n}" for g, names in chosen.items() for n in names})


def _check_eigenvalue(every: int, chosen: set[str]) -> None:
    """The watch computes what the modifier of this name computes, so it goes with the same parts."""
    refused = dict(PARTS["modifier", "eigenvalue"].refuses)
    for (group, name), part in PARTS.items():
        if "modifier=eigenvalue" in part.refuses:
            refused[f"{group}={name}"] = part.refuses["modifier=eigenvalue"]
    for other in sorted(chosen & refused.keys()):
        raise UserError(f"watch.eigenvalue={every} does not go with {other}: {refused[other]}")


def _fields(prefix: str, owner: Any) -> Iterator[tuple[str, Any, Field, Any]]:
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(f"{prefix}{field.name}.", value)
        elif isinstance(value, dict):
            for name, child in value.items():
                yield from _fields(f"{prefix}{field.name}.{name}.", child)
        else:
            yield f"{prefix}{field.name}", owner, field, value


def _possible(field: Field, value: Any) -> bool:
    meta = field.metadata
    if value is None:
        return True  # the type has decided whether null is allowed
    if "choices" in meta:
        return value in meta["choices"]
    if "pattern" in meta:
        return re.fullmatch(meta["pattern"], value) is not None
    if isinstance(value, list):
        if "length" in meta and len(value) != meta["length"]:
            return False
        if meta.get("unique") and any(isinstance(item, (list, dict)) for item in value):
            return False  # no names, whatever they are
        if meta.get("unique") and (not value or len(set(value)) < len(value)):
            return False
        return all(_within(meta, item) for item in value)
    return _within(meta, value)


def _within(meta: typing.Mapping[str, Any], value: Any) -> bool:
    if any(bound in meta for bound in ("ge", "gt", "le", "lt")) and not isinstance(value, (int, float)):
        return False
    return not (
        ("ge" in meta and not value >= meta["ge"])
        or ("gt" in meta and not value > meta["gt"])
        or ("le" in meta and not value <= meta["le"])
        or ("lt" in meta and not value < meta["lt"])
    )


def _finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)


def _text(value: Any) -> str:
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, list) else str(value)
