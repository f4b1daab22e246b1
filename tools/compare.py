"""Compare runs: mean ± std over seeds per method, a test of significance, a plot.

    python tools/compare.py DIR [DIR...] [--by method] [--metric child.test.accuracy] [--against NAME]
                            [--plot FILE.png|FILE.svg] [--csv FILE] [--json FILE]

A DIR is a run directory, or a tree of them such as that of a multirun; a run belongs to the group that its
``config.yaml`` gives for the keys of ``--by`` (``method``, ``update.name,search.epochs``, ...). ``--metric`` is a path
into ``report.json``. Runs that failed or are not finished are listed and counted nowhere. Settings in which runs differ
beside ``--by`` and the seed are named below the table, since the table then compares more than it says.

Significance: every group against the best mean of several runs (or ``--against``) by Welch's t-test, two-sided, with
Holm's correction for the number of comparisons. Welch and not Student, since methods differ in variance. Not a
permutation test, since with the usual 3 seeds a side its smallest possible p is 2/20: it could never say anything. Not
paired, since a seed shared by two methods gives them the same data split but neither the same weights nor the same
child. The intervals of the plot are 95 % t intervals of the mean.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

FREE = ("run_dir", "resume", "seed", "name", "device", "threads")
"""Keys in which runs of one group may differ."""
PARTS = ("relaxation", "update", "modifier", "derive")
"""What follows from the method; ``--by method`` says nothing of a difference in these between groups."""


class Mistake(Exception):
    """What the user can mend, as one sentence."""


@dataclass(frozen=True)
class Run:
    """One run directory. ``problem`` says why it does not count; ``value`` and figures are then None."""

    directory: str
    group: str
    seed: int | None
    value: float | None = None
    search_seconds: float | None = None
    params: int | None = None
    skips: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Group:
    """A row of the table. ``p`` is corrected by Holm; None where no test is possible."""

    name: str
    n: int
    mean: float
    std: float | None
    half_width: float | None
    search_seconds: float | None
    params: float | None
    skips: float | None
    difference: float | None = None
    p: float | None = None


def find(directories: list[Path]) -> list[Path]:
    """All run directories below, each once."""
    found: dict[Path, None] = {}
    for top in directories:
        if not top.is_dir():
            raise Mistake(f"{top}: there is no such directory")
        runs = {p.parent.resolve() for name in ("config.yaml", "report.json", "run.log") for p in top.rglob(name)}
        # A job of a multirun that failed at once has left an empty directory.
        runs |= {p.resolve() for sweep in top.rglob("multirun.yaml") for p in sweep.parent.iterdir() if p.is_dir()}
        if not runs:
            raise Mistake(f"{top}: no run is in it (no config.yaml, report.json or run.log)")
        found |= dict.fromkeys(sorted(runs))
    return list(found)


def at(document: Any, path: str) -> Any:
    """The value at a dotted path, or None."""
    for key in path.split("."):
        document = document.get(key) if isinstance(document, dict) else None
    return document


def read(directory: Path, by: list[str], metric: str) -> tuple[Run, dict[str, Any]]:
    """A run, and its configuration with dotted keys."""
    shown = str(directory)
    try:
        config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
        assert isinstance(config, dict)
    except FileNotFoundError:
        return Run(shown, "?", None, problem="failed before it began (no config.yaml)"), {}
    except (OSError, yaml.YAMLError, AssertionError):
        return Run(shown, "?", None, problem="config.yaml cannot be read"), {}
    keys = flat(config)
    modifiers = ",".join(sorted(config.get("modifier") or {})) or "none"
    values = [modifiers if key == "modifier" else keys.get(key, "(absent)") for key in by]
    group, seed = ", ".join(map(str, values)), config.get("seed")
    if not (directory / "report.json").exists():
        return Run(shown, group, seed, problem=f"not finished{_reached(directory)}"), keys
    try:
        report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Run(shown, group, seed, problem="report.json is damaged"), keys
    value = at(report, metric)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        said = "is null: it was not finite" if metric_known(report, metric) else "is not in it"
        return Run(shown, group, seed, problem=f"report.json: {metric} {said}"), keys
    skips = json.dumps(at(report, "genotype")).count("skip_connect")
    seconds, params = at(report, "search.seconds"), at(report, "child.params")
    return Run(shown, group, seed, float(value), seconds, params, skips), keys


def metric_known(report: Any, metric: str) -> bool:
    """Whether a path is in the report, be it null."""
    owner, _, key = metric.rpartition(".")
    inside = at(report, owner) if owner else report
    return isinstance(inside, dict) and key in inside


def _reached(directory: Path) -> str:
    """How far an unfinished run came, by its last recorded epoch."""
    path = directory / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "epoch" in entry:
            return f": epoch {entry['epoch'] + 1} of the {entry.get('phase', 'run')} is its last"
    return ", nothing recorded"


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as dotted keys."""
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {key: value for name, child in node.items() for key, value in flat(child, f"{prefix}{name}.").items()}


def mixed(runs: list[tuple[Run, dict[str, Any]]], by: list[str]) -> list[str]:
    """Sentences about settings in which runs differ that the groups do not tell apart."""
    sentences, told = [], set()
    for name in [*sorted({run.group for run, _ in runs}), None]:  # within each group, then all together
        inside = [config for run, config in runs if name in (None, run.group)]
        expected = (*FREE, *by, *told, *((*PARTS, "method") if name is None and "method" in by else ()))
        for key in sorted({k for config in inside for k in config}):
            values = sorted({str(config.get(key, "(absent)")) for config in inside})
            if len(values) > 1 and not any(key == e or key.startswith(f"{e}.") for e in expected):
                sentences.append(f"{name or 'all'}: runs differ in {key} ({', '.join(values)})")
                told.add(key)
        seeds = [run.seed for run, _ in runs if run.group == name]
        twice = sorted({s for s in seeds if s is not None and seeds.count(s) > 1})
        if twice:
            sentences.append(f"{name}: seed {', '.join(map(str, twice))} counts more than once")
    return sentences


def summarise(runs: list[Run], against: str | None) -> tuple[list[Group], str]:
    """The groups, best mean first, each tested against the baseline; and the baseline's name."""
    stats = _scipy()
    values: dict[str, list[float]] = {}
    for run in runs:
        if run.value is not None:
            values.setdefault(run.group, []).append(run.value)
    order = sorted(values, key=lambda name: -statistics.mean(values[name]))
    baseline = against or next((name for name in order if len(values[name]) > 1), order[0])  # one run tests nothing
    if baseline not in values:
        raise Mistake(f"--against {baseline}: no finished run is of that group; there are: {', '.join(order)}")
    others = [name for name in order if name != baseline]
    p = holm([welch(stats, values[name], values[baseline]) for name in others])
    tested = dict(zip(others, p, strict=True))
    rows = []
    for name in order:
        mine, n = [run for run in runs if run.group == name and run.value is not None], len(values[name])
        std = statistics.stdev(values[name]) if n > 1 else None
        half = None if std is None else float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n)
        mean = statistics.mean(values[name])
        difference = None if name == baseline else mean - statistics.mean(values[baseline])
        figures = [average([getattr(run, f) for run in mine]) for f in ("search_seconds", "params", "skips")]
        rows.append(Group(name, n, mean, std, half, *figures, difference=difference, p=tested.get(name)))
    return rows, baseline


def average(values: list[float | None]) -> float | None:
    """Mean of what is there."""
    present = [v for v in values if v is not None]
    return statistics.mean(present) if present else None


def welch(stats: Any, a: list[float], b: list[float]) -> float | None:
    """Two-sided p of Welch's t-test; None where a side has one run, or neither varies."""
    if min(len(a), len(b)) < 2 or len(set(a)) == len(set(b)) == 1:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nearly equal values: p is then as precise as they are
        return float(stats.ttest_ind(a, b, equal_var=False).pvalue)


def holm(p: list[float | None]) -> list[float | None]:
    """Holm's correction: the i-th smallest of m is multiplied by m - i + 1, and none falls below a smaller one's."""
    order = sorted((i for i, value in enumerate(p) if value is not None), key=lambda i: p[i] or 0.0)
    corrected: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (p[i] or 0.0) * (len(order) - rank)))
        corrected[i] = largest
    return corrected


def _scipy() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise Mistake("scipy is missing, which the test needs: pip install -e '.[compare]'") from error
    return stats


def number(value: float | None, form: str) -> str:
    """A figure, or a dash."""
    return "-" if value is None else format(value, form)


def table(groups: list[Group], baseline: str, by: list[str], metric: str) -> str:
    """The Markdown table. Accuracies and F1 are in percent."""
    form = "+.2%" if is_share(metric) else "+.4g"
    head = [", ".join(by), metric.removeprefix("child."), f"difference to {baseline}", "p (Holm)"]
    lines = [[*head, "search seconds", "params", "skips"], ["---"] * 7]
    for g in groups:
        std = f" ± {number(g.std, form[1:])}" if g.std is not None else ""
        difference = "" if g.difference is None else format(g.difference, form)
        p = "" if g.difference is None else "< 0.001" if g.p is not None and g.p < 0.001 else number(g.p, ".3f")
        figures = [number(g.search_seconds, ",.1f"), number(g.params, ",.0f"), number(g.skips, ".1f")]
        lines.append([g.name, f"{number(g.mean, form[1:])}{std} (n = {g.n})", difference, p, *figures])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def is_share(metric: str) -> bool:
    """Whether a metric lies in [0, 1] and is shown in percent."""
    return metric.rpartition(".")[2].removeprefix("valid_") in ("accuracy", "f1", "precision", "recall")


def plot(groups: list[Group], runs: list[Run], metric: str, path: Path) -> None:
    """A point for each run, the mean and its 95 % t interval for each group, best on top."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import PercentFormatter
    except ImportError as error:
        raise Mistake("matplotlib is missing, which --plot needs: pip install -e '.[compare]'") from error
    figure = Figure(figsize=(8.0, 1.2 + 0.5 * len(groups)), layout="constrained")
    axes = figure.add_subplot()
    for row, group in enumerate(groups):
        values = sorted(run.value for run in runs if run.group == group.name and run.value is not None)
        heights = [row - 0.12 - 0.08 * (i % 3) for i in range(len(values))]  # equal values stay apart
        axes.plot(values, heights, "o", color="#5b8bb5", alpha=0.8, markersize=5, zorder=2)
        error = None if group.half_width is None else [group.half_width]
        axes.errorbar(
            [group.mean], [row + 0.12], xerr=error, fmt="D", color="#222222", markersize=5, capsize=4, zorder=3
        )
    values = [run.value for run in runs if run.value is not None]
    spread = (max(values) - min(values)) or abs(max(values)) * 0.01 or 1.0
    # The interval of two runs may reach far beyond all points; it is then cut at the frame.
    reach = max([abs(g.mean - v) + (g.half_width or 0.0) for g in groups for v in (min(values), max(values))])
    margin = min(spread, max(0.1 * spread, reach - spread))
    low, high = min(values) - margin, max(values) + margin
    if is_share(metric):
        low, high = max(low, 0.0), min(high, 1.0 + 0.02 * (1.0 - max(low, 0.0)))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlim(low, high)
    labels = [g.name if len(g.name) <= 40 else f"...{g.name[-37:]}" for g in groups]
    axes.set_yticks(range(len(groups)), [f"{label} (n = {g.n})" for label, g in zip(labels, groups, strict=True)])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"{metric.removeprefix('child.').replace('.', ' ')}: runs, mean, 95 % t interval")
    figure.savefig(path, dpi=150)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--by", default="method", help="keys of the configuration, with commas")
    parser.add_argument("--metric", default="child.test.accuracy", help="a path into report.json")
    parser.add_argument("--against", help="the group that the others are tested against; else the best mean")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--csv", type=Path, help="one line for each run, unfinished ones too")
    parser.add_argument("--json", type=Path, help="groups and runs")
    args = parser.parse_args()
    try:
        compare(args)
    except (Mistake, OSError) as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    return 0


def compare(args: argparse.Namespace) -> None:
    """Print the table and write what is asked for."""
    by = args.by.split(",")
    if args.plot and args.plot.suffix not in (".png", ".svg"):
        raise Mistake(f"--plot {args.plot}: its name must end with .png or .svg")
    every = [read(directory, by, args.metric) for directory in find(args.directories)]
    runs = [run for run, _ in every]
    known = {key for _, config in every for key in config} | {"modifier"}
    for key in by:
        if known != {"modifier"} and key not in known:
            near = sorted(k for k in known if key.rpartition(".")[2] in k)
            raise Mistake(f"--by {key}: no run has that key" + (f"; near it: {', '.join(near[:8])}" if near else ""))
    failed = [run for run in runs if run.problem is not None]
    rows: list[Group] = []
    if len(failed) < len(runs):
        rows, baseline = summarise(runs, args.against)
        print(table(rows, baseline, by, args.metric))
        chosen = "" if args.against else " (the best mean of several runs; having been chosen flatters it)"
        print(
            f"\nmean ± standard deviation over runs; two-sided Welch t-tests against {baseline}{chosen}, Holm-corrected"
        )
        for sentence in mixed([(run, config) for run, config in every if run.problem is None], by):
            print(f"note: {sentence}")
    if failed:
        print(f"\n{len(failed)} of {len(runs)} runs do not count:")
        for run in failed:
            print(f"  {run.directory} ({run.group}, seed {run.seed}): {run.problem}")
    if args.csv:
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(Run.__dataclass_fields__))
            writer.writeheader()
            writer.writerows(asdict(run) for run in runs)
    if args.json:
        document = {
            "by": by,
            "metric": args.metric,
            "groups": [asdict(g) for g in rows],
            "runs": [asdict(r) for r in runs],
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if not rows:
        raise Mistake("no run is finished, so there is nothing to compare")
    if args.plot:
        plot(rows, runs, args.metric, args.plot)


if __name__ == "__main__":
    sys.exit(main())
