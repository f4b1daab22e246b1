"""Hydra's and OmegaConf's errors, said in one sentence: the key, the value, what is allowed, the nearest valid name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from supernet.config.check import OPTIONAL_GROUPS, PART_GROUPS, describe
from supernet.errors import UserError
from supernet.registry import PARTS
from supernet.schema import Config

GROUPS = (*PART_GROUPS, *OPTIONAL_GROUPS, "modifier", "method", "debug", "experiment")
"""What is chosen by name."""

EXPLAINED = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)
"""What composing raises. Hydra raises bare ValueErrors of its own for a defaults list that it cannot read."""


def explain(error: Exception, overrides: Iterable[str] = ()) -> UserError:
    """The sentence for an error raised while composing; ``overrides`` are what was typed."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return UserError(f"{mark.name}, line {mark.line + 1}: this is not valid YAML: {error.problem}")
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    inner = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    where = _where(str(error))
    if isinstance(inner, OmegaConfBaseException):
        return _bad_key_or_value(inner, where, overrides)
    if match := re.search(r"Could not override '([\w/@.]+)'", str(error)):
        return unknown_key(match[1], where, typed=overrides)
    return UserError(where + _first_line(error))


def unknown_key(key: str, where: str = "", valid: Iterable[str] = (), typed: Iterable[str] = ()) -> UserError:
    """The sentence for a key that does not exist; ``valid`` are its siblings, ``typed`` the overrides it may be
    among."""
    if key == "experiment":
        return UserError(
            f"{where}experiment is added on the command line as +experiment=NAME,"
            " and its file begins with '# @package _global_'"
        )
    if re.fullmatch(r"modifier\.\w+", key):
        return UserError(f"{where}{key}: this modifier is not chosen; choose with 'modifier=[NAME]'", valid=valid)
    names = list(valid) or [f.name for f in dataclasses.fields(Config)]
    if "." not in key:
        names += ["debug", "+experiment"]
    parent = key.rpartition(".")[0]
    if parent:  # the name of a part is chosen by its group
        names = [f"{parent}.{name}" for name in names if name != "name"]
    given = next((f"{text}: " for text in typed if text.lstrip("+~").partition("=")[0] == key), "")
    return UserError(f"{where}{given}{key!r} is not a key", valid=names, got=key)


def _missing_option(error: MissingConfigException) -> UserError:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    where = _where(str(error))
    valid = error.options or [known for g, known in PARTS if g == group == "modifier"]
    if not valid:
        return UserError(f"{where}there is no {error.missing_cfg_file!r}, which its defaults list names")
    return UserError(f"{where}{group}={name}: {group} has no option {name!r}", valid=valid, got=name)


def _bad_key_or_value(error: OmegaConfBaseException, where: str, overrides: Iterable[str]) -> UserError:
    key = str(error.full_key or "")
    parent = error.parent_node
    owner = error.object_type if dataclasses.is_dataclass(error.object_type) else None
    if isinstance(error, ConfigAttributeError | ConfigKeyError) and "nterpolation" not in str(error):
        siblings = list(map(str, parent)) if isinstance(parent, DictConfig) else []
        return unknown_key(key, where, [name for name in siblings if name != "hydra"], overrides)
    if key == "modifier":
        names = [name for group, name in PARTS if group == "modifier"]
        typed = next((text for text in overrides if text.startswith("modifier=")), "modifier")
        there = "" if names else " (there is none without a plug-in)"
        return UserError(f"{where}{typed}: no modifier of that name is registered{there}", valid=names)
    if key in GROUPS or "Merge error" in str(error):
        value = error.value if error.value is not None else _first_line(error).rpartition("value: ")[2]
        return UserError(
            f"{where}{key or 'a part'}: {value} cannot stand here; a part is chosen by name, GROUP=NAME on the command"
            " line or '- override /GROUP: NAME' in the defaults list of a file"
        )
    if "Cannot merge DictConfig with ListConfig" in str(error) and not key:
        return UserError(f"{where}the file must hold keys and values, and holds a list")
    name = str(error.key)
    if owner is None and isinstance(parent, DictConfig) is False and parent is not None:
        container = parent._get_parent()  # an element of a list: the list is the field
        owner, name = (OmegaConf.get_type(container) if container is not None else None), str(parent._key())
    if owner is not None and dataclasses.is_dataclass(owner) and name in {f.name for f in dataclasses.fields(owner)}:
        if "nterpolation" in str(error):
            return UserError(f"{where}{key}: {_first_line(error)}")
        return UserError(f"{where}{key}={_shown(error.value)}: it must be {describe(owner, name)}")
    return UserError(f"{where}{key}: {_first_line(error)}" if key else f"{where}{_first_line(error)}")


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _where(message: str) -> str:
    """The file that Hydra names, as ``conf`` files are named: ``In 'experiment/foo': ...``."""
    match = re.match(r"In '([^']+)'", message)
    return f"{match[1]}.yaml: " if match and match[1] not in ("config", "hydra/config") else ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = (
        lines[1]
        if len(lines) > 1 and lines[0].endswith("composing config:")
        else lines[0]
        if lines
        else type(error).__name__
    )
    return re.sub(r"^In '[^']+': ", "", text).strip().rstrip(".")
