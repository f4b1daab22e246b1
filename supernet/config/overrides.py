"""The command line before Hydra sees it: ``key=value`` texts, plug-ins to import, jobs of a sweep and their names."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Iterable, Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from supernet.config.explain import GROUPS
from supernet.config.store import store_parts
from supernet.errors import UserError

FIXED = ("run_dir", "resume", "plugins")
"""Keys that say how to run, not what: one value for all jobs of a sweep, and no part of a job's name."""

_IMPORTED: set[str] = set()


def parse(texts: Sequence[str]) -> list[Override]:
    """Parse overrides, refusing what cannot be read, what removes a key, and what is said twice.

    Every key exists already, so a plus adds nothing and is dropped; only an experiment needs it, and gets it.
    """
    overrides: dict[str, Override] = {}
    for given in texts:
        text = given if given.lstrip("+").startswith("hydra") else given.lstrip("+")
        text = f"+{text}" if text.startswith("experiment=") else text
        try:
            override: Override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise UserError(
                f"cannot read {text!r} as key=value; quote texts with special characters, as in 'key=\"a b\"'"
            ) from error
        key = override.key_or_group
        if not key:
            raise UserError(f"cannot read {text!r} as key=value: there is no key")
        if key in overrides:
            raise UserError(f"{key} is given twice, {overrides[key].input_line!r} and {text!r}; keep one")
        overrides[key] = override
        if not override.is_hydra_override():
            _check_form(override, text)
        elif key.startswith("hydra.") and key.split(".")[1] not in HydraConf.__dataclass_fields__:
            raise UserError(
                f"{text!r}: {key} is not a key", valid=HydraConf.__dataclass_fields__, got=key.split(".")[1]
            )
    return list(overrides.values())


def line(override: Override) -> str:
    """The override as Hydra is to read it."""
    assert override.input_line is not None
    return override.input_line


def _check_form(override: Override, text: str) -> None:
    key = override.key_or_group
    if override.is_delete():
        raise UserError(f"{text!r} removes a key; every key must have a value")
    if override.package is not None:
        raise UserError(f"{text!r} moves a group to another place, which no part expects; write {key}=NAME")
    if key in FIXED and override.is_sweep_override():
        raise UserError(f"{text!r}: {key} is the same for all jobs and cannot be swept over")
    if key.count(".") == 1 and key.endswith(".name") and key.split(".")[0] in GROUPS:
        group = key.split(".")[0]
        raise UserError(f"{text!r}: a part is chosen with {group}=NAME")
    value = None if override.is_sweep_override() else override.value()
    if key in GROUPS and not override.is_sweep_override():
        listed = key == "modifier" and isinstance(value, list)
        if not (isinstance(value, str) and key != "modifier") and not listed and not isinstance(value, dict):
            form = "'modifier=[NAME,NAME]', and 'modifier=[]' for none" if key == "modifier" else f"{key}=NAME"
            raise UserError(f"{text!r} must be {form}")


def import_plugins(names: Iterable[str]) -> None:
    """Import the modules of ``plugins=[...]``, so that the parts they register can be named."""
    for name in names:
        if name in _IMPORTED:
            continue
        if "" not in sys.path and "." not in sys.path:
            sys.path.append("")  # the working directory, which `python -m` has and a console script has not
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a user's module does wrong
            raise UserError(f"plugins: cannot import {name!r}: {type(error).__name__}: {error}") from error
        _IMPORTED.add(name)
    store_parts()


def plugins_named(overrides: Iterable[Override]) -> list[str]:
    """The modules that ``plugins=`` names on the command line."""
    for override in overrides:
        if override.key_or_group == "plugins":
            names = override.value()
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise UserError(f"{override.input_line!r} must be a list of modules, 'plugins=[my_package.parts]'")
            return names
    return []


def check_imported(names: Iterable[str]) -> None:
    """Refuse plug-ins that only a file names: its parts would have to be known before the file is read."""
    for name in names:
        if name not in _IMPORTED:
            raise UserError(
                f"plugins: {name!r} is named in a file, which is too late; add 'plugins=[{name}]' to the command line"
            )


def expand(overrides: Sequence[Override], params: Iterable[tuple[str, str]] = ()) -> list[list[str]]:
    """The jobs of a multirun, each a list of overrides, as Hydra's basic sweeper splits them."""
    given = [OverridesParser.create().parse_override(f"{key}={value}") for key, value in params]
    try:
        return BasicSweeper.split_arguments([*given, *overrides], None)[0]
    except HydraException as error:
        raise UserError(f"the sweep cannot be split into jobs: {error}") from error


def job_name(overrides: Iterable[str]) -> str:
    """The directory of one job of a multirun: its overrides without ``=`` and ``,``, the same on every run.

    >>> job_name(["seed=3", "+experiment=darts_digits", "resume=auto"])
    'experiment_darts_digits-seed_3'
    """
    texts = sorted(text.lstrip("+~") for text in overrides)
    exact = "-".join(text.replace("=", "_", 1) for text in texts if text.partition("=")[0] not in FIXED) or "defaults"
    safe = re.sub(r"[^\w.+-]", "_", exact)
    if safe == exact and len(safe) <= 120:
        return safe
    digest = hashlib.blake2s(exact.encode(), digest_size=4).hexdigest()
    return f"{safe[:100]}-{digest}"
