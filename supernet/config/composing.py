"""From overrides to the typed configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from supernet.config.check import check_keys, check_together, check_values
from supernet.config.explain import EXPLAINED, explain
from supernet.config.overrides import check_imported, import_plugins, job_name, line, parse, plugins_named
from supernet.config.store import CONF, store_parts
from supernet.errors import UserError
from supernet.schema import Config

OmegaConf.register_new_resolver("supernet.job", job_name, replace=True)
store_parts()


def compose(overrides: Sequence[str] = ()) -> Config:
    """The configuration that the command line would run with, as typed dataclasses.

    >>> compose(["+experiment=darts_digits", "search.epochs=3"]).search.epochs
    3

    Raises UserError, in one sentence, for anything that the command line would refuse.
    """
    parsed = parse(overrides)
    for override in parsed:
        if override.is_sweep_override():
            raise UserError(
                f"{override.input_line!r} is a sweep; one configuration needs one value, or [a,b] for a list"
            )
    import_plugins(plugins_named(parsed))
    with hydra_ready():
        return finish(compose_raw([line(override) for override in parsed]))


@contextmanager
def hydra_ready() -> Iterator[None]:
    """Hydra with our ``conf`` tree, for the composing within; what was initialised before comes back afterwards."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def compose_raw(overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes, its own node included; its errors become sentences."""
    try:
        return hydra.compose("config", overrides=list(overrides), return_hydra_config=True)
    except EXPLAINED as error:
        raise explain(error, overrides) from error


def finish(composed: DictConfig, method: str | None = None) -> Config:
    """Check what Hydra composed, give it its types and apply the limits of ``debug``.

    ``method`` is the chosen option of its group, where ``composed`` has no Hydra node to look it up in.
    """
    composed = composed.copy()
    OmegaConf.set_struct(composed, False)
    if method is None:
        method = str(composed.pop("hydra").runtime.choices["method"])
    if composed.get("method") not in (Config.method, method):
        raise UserError(
            f"method={composed.get('method')}: a method is chosen with method=NAME or '- override /method: NAME'"
        )
    composed["method"] = method
    try:
        check_keys(composed)
        config: Any = OmegaConf.to_object(composed)
    except EXPLAINED as error:
        raise explain(error) from error
    assert isinstance(config, Config)
    check_imported(config.plugins)
    check_values(config)
    check_together(config)
    limited = apply_limit(config)
    check_values(limited)  # what is cut may contradict what is not
    return limited


def apply_limit(config: Config) -> Config:
    """``config`` cut to its ``limit`` by ``min``; ``limit.steps`` is for the loaders, and for a controller that takes
    steps of its own; ``limit.images`` is for the loaders."""
    limit = config.limit

    def cut(part: Any) -> Any:
        names = ("epochs", "batch", "channels", "cells")
        bounds = {name: getattr(limit, name) for name in names}
        return dataclasses.replace(part, **{k: min(getattr(part, k), v) for k, v in bounds.items() if v is not None})

    derive = config.derive
    if limit.queries is not None and hasattr(derive, "queries"):
        derive = dataclasses.replace(derive, queries=min(derive.queries, limit.queries))
    update = config.update
    if limit.steps is not None and hasattr(update, "steps"):
        update = dataclasses.replace(update, steps=min(update.steps, limit.steps))
    return dataclasses.replace(
        config, search=cut(config.search), retrain=cut(config.retrain), derive=derive, update=update
    )


def options() -> dict[str, list[str]]:
    """The groups and the options that can be named, files included; within :func:`hydra_ready`."""
    loader = GlobalHydra.instance().config_loader()
    groups = [group for group in loader.list_groups("") if group != "hydra"]
    return {group: sorted(loader.get_group_options(group)) for group in sorted(groups)}
