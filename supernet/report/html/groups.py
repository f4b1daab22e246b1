"""Runs that differ in nothing but the seed are one group: its label, its colour, its mean."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from supernet.report.html.charts import Line, Points, colour_and_dash
from supernet.report.html.reading import RunData

FREE = ("seed", "run_dir", "resume", "device", "threads")
"""Keys in which runs of one group may differ."""
FOLLOWS = ("relaxation.", "update.", "modifier", "derive.")
"""What follows from the method, and is not named beside it."""


@dataclass(frozen=True)
class RunGroup:
    """Runs of one configuration; ``index`` is that of its colour."""

    label: str
    runs: tuple[RunData, ...]
    index: int


def differing(runs: Sequence[RunData]) -> dict[str, list[str]]:
    """The settings in which runs differ, as text for every run; directories and such do not count."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    shown = {key: [run.setting(key, "-") for run in runs] for key in keys if key not in FREE or key == "seed"}
    return {key: values for key, values in shown.items() if len(set(values)) > 1}


def grouped(runs: Sequence[RunData]) -> list[RunGroup]:
    """In the order in which they are first named."""
    sets: dict[tuple[tuple[str, str], ...], list[RunData]] = {}
    for run in runs:
        known = tuple(sorted((k, str(v)) for k, v in run.config.items() if k not in FREE))
        sets.setdefault(known or (("", run.name),), []).append(run)
    groups = list(sets.values())
    firsts = [group[0] for group in groups]
    keys = [key for key in differing(firsts) if key not in FREE]
    if "method" in keys:
        keys = [key for key in keys if not key.startswith(FOLLOWS)]
    labels = _labels(firsts, keys)
    return [RunGroup(label, tuple(group), i) for i, (label, group) in enumerate(zip(labels, groups, strict=True))]


def _labels(runs: Sequence[RunData], keys: Sequence[str]) -> list[str]:
    """As few settings as tell the runs apart, else their names."""
    for most in range(1, min(4, len(keys) + 1)):
        labels = [", ".join(_said(run, key) for key in sorted(keys, key=_rank)[:most]) for run in runs]
        if len(set(labels)) == len(labels):
            return labels
    return [run.name for run in runs]


def _rank(key: str) -> bool:
    """The method first, then in the order of the configuration."""
    return key != "method"


def _said(run: RunData, key: str) -> str:
    return run.setting(key, "-") if key in ("method", "name") else f"{key}={run.setting(key, '-')}"


def group_lines(groups: Sequence[RunGroup], curves: Mapping[str, Points]) -> list[Line]:
    """A curve for every group; several seeds are faint curves, and their mean with its standard deviation around it.
    ``curves`` has the points of each run by name."""
    lines = []
    for group in groups:
        colour, dash = colour_and_dash(group.index)
        members = [curves[run.name] for run in group.runs if curves.get(run.name)]
        if len(members) < 2:
            lines += [Line(group.label, points, colour, dash) for points in members]
            continue
        lines += [Line(group.label, points, colour, dash, faint=True) for points in members]
        at: dict[float, list[float]] = {}
        for points in members:
            for x, y in points:
                if y is not None:
                    at.setdefault(x, []).append(y)
        # Where not all runs have come yet, a mean would jump.
        whole = {x: ys for x, ys in sorted(at.items()) if len(ys) == len(members)}
        mean = {x: statistics.fmean(ys) for x, ys in whole.items()}
        band = [(x, mean[x] - statistics.stdev(ys), mean[x] + statistics.stdev(ys)) for x, ys in whole.items()]
        name = f"{group.label}, mean of {len(members)} seeds"
        lines.append(Line(name, list(mean.items()), colour, dash, band=band))
    return lines
