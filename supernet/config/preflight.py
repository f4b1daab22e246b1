"""Compose every job before anything starts, so that a mistake in the last job of a sweep is found before the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from supernet.config.composing import compose_raw, finish, hydra_ready
from supernet.config.overrides import expand, import_plugins, job_name, line, parse, plugins_named
from supernet.errors import UserError
from supernet.schema import Config


@dataclass(frozen=True)
class Plan:
    """What will run: the overrides for Hydra, the directory of a multirun (None where there is one run), and the
    configuration of each job by its name."""

    overrides: list[str]
    directory: Path | None
    jobs: dict[str, Config]


def preflight(texts: Sequence[str], *, multirun: bool) -> Plan:
    """Check a whole command. Raises UserError for the first mistake of any job."""
    overrides = parse(texts)
    import_plugins(plugins_named(overrides))
    sweeps = [override for override in overrides if override.is_sweep_override()]
    with hydra_ready():
        shared = compose_raw([line(override) for override in overrides if override not in sweeps])
        multirun = multirun or shared.hydra.mode == RunMode.MULTIRUN
        if sweeps and not multirun:
            raise UserError(
                f"{sweeps[0].input_line!r} asks for several runs: add -m for a multirun, or write [a,b] for a list"
            )
        if not multirun:
            return Plan(list(map(line, overrides)), None, {"": finish(shared)})
        return _plan_sweep(overrides, shared)


def _plan_sweep(overrides: list[Override], shared: DictConfig) -> Plan:
    """One run directory for the whole sweep: each job would compose its own, with its own seed in it.

    Repeating the command is how a sweep is completed, so its jobs go on where they stand unless ``resume`` is given.
    """
    directory = str(OmegaConf.select(shared, "run_dir"))
    run_dir = directory.replace("\\", "\\\\").replace("'", "\\'")
    hydra_lines = [line(override) for override in overrides if override.is_hydra_override()]
    task = [
        override for override in overrides if not override.is_hydra_override() and override.key_or_group != "run_dir"
    ]
    fixed = [f"run_dir='{run_dir}'"]
    if not any(override.key_or_group == "resume" for override in task):
        fixed.append("resume=auto")
    plan = Plan([*hydra_lines, *fixed, *map(line, task)], Path(directory), {})
    if not str(shared.hydra.sweeper.get("_target_")).endswith(".BasicSweeper"):
        return plan  # another sweeper draws its jobs as it goes; each is checked when it starts
    params = (shared.hydra.sweeper.params or {}).items()
    for job in expand(task, params):
        name = job_name(job)
        if name in plan.jobs:
            raise UserError(f"two jobs of the sweep are the same: {' '.join(job)}")
        plan.jobs[name] = finish(compose_raw([*hydra_lines, *fixed, *job]))
    return plan
