"""The truth about 125 cells: all of ``space=digits_cells``, trained from scratch on the digits with several seeds.

    python tools/digits_truth.py OUT [--seeds 0 1 2] [--jobs 2] [--table FILE.csv] [--plot FILE.png]

Every row is what ``python -m supernet.retrain +experiment=digits_table genotype=CELL seed=SEED`` reports. Finished rows
are kept in OUT/rows.jsonl, so an interrupted command is simply repeated. ``--table`` writes what the package ships as
``supernet/benchmarks/digits_cells.csv``, with the mean over the seeds as its truth. Prints how far that can be trusted:
the spread over seeds, what choosing a cell by one training costs in another, and how well trainings agree in rank.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from supernet.benchmarks.nasbench201 import all_archs
from supernet.config import compose
from supernet.runtime.files import write_atomic
from supernet.schema import Config
from supernet.train import retrain

STATES = 3
Rows = dict[tuple[str, int], dict[str, Any]]
"""Finished trainings by cell and seed."""


def config_of(arch: str, seed: int, run_dir: Path) -> Config:
    """The retraining of a cell; without the benchmark, which this tool makes."""
    config = compose(["+experiment=digits_table", f"genotype='{arch}'", f"seed={seed}", f"run_dir={run_dir}"])
    return dataclasses.replace(config, benchmark=None)


def train_cell(arch: str, seed: int) -> dict[str, Any]:
    """One training from scratch and its test, in a directory that goes away; accuracies in %."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = config_of(arch, seed, Path(folder) / "run")
        report = retrain(config, Path(folder) / "run")
    child = report["child"]
    return {
        "arch": arch,
        "seed": seed,
        "test": round(100 * child["test"]["accuracy"], 2),
        "valid": round(100 * child["valid_accuracy"], 2),
        **{name: child[name] for name in ("params", "macs", "seconds")},
        "settings": dataclasses.asdict(config.retrain),
        "versions": report["versions"] | {name: report[name] for name in ("cpu", "instructions")},
    }


def finished_rows(file: Path) -> Rows:
    """The rows that are there. Ends the program where they are of other settings."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    settings = dataclasses.asdict(config_of(next(all_archs(states=STATES)), 0, file.parent).retrain)
    if any(settings.get(key) != value for row in rows for key, value in row["settings"].items()):  # keys may be added
        sys.exit(f"error: {file} holds rows of other settings than those of digits_table: choose another OUT")
    return {(row["arch"], row["seed"]): row for row in rows}


def train_missing(wanted: Sequence[tuple[str, int]], rows: Rows, file: Path, jobs: int) -> None:
    """Train what is not there, and keep each row when it is finished."""
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        for done in as_completed([pool.submit(train_cell, *key) for key in wanted if key not in rows]):
            row = done.result()
            rows[row["arch"], row["seed"]] = row
            write_atomic(file, "".join(json.dumps(row) + "\n" for row in rows.values()))
            print(f"{len(rows)}: {row['arch']}, seed {row['seed']}: {row['test']:.2f}", file=sys.stderr, flush=True)
    finally:
        pool.shutdown(cancel_futures=True)


def table(rows: Rows, archs: Sequence[str], seeds: Sequence[int]) -> str:
    """The CSV file that ships: means over the seeds, each seed, and what the child costs."""
    each = [f"{name}_{seed}" for name in ("test", "valid") for seed in seeds]
    one = rows[archs[0], seeds[0]]
    made = ", ".join(f"{name} {value}" for name, value in one["versions"].items() if name != "cpu")
    lines = [
        f"# Accuracies in % of the {len(archs)} cells of space=digits_cells on scikit-learn's digits; mean over seeds",
        f"# {' '.join(map(str, seeds))} and each seed. Made by: python tools/digits_truth.py OUT --table FILE",
        "# A row is what is reported by: python -m supernet.retrain +experiment=digits_table genotype=CELL seed=SEED",
        f"# {made}",
        ",".join(["arch", "test", "valid", *each, "params", "macs"]),
    ]
    for arch in archs:
        own = [rows[arch, seed] for seed in seeds]
        means = [f"{statistics.fmean(row[name] for row in own):.2f}" for name in ("test", "valid")]
        values = [f"{row[name]:.2f}" for name in ("test", "valid") for row in own]
        lines.append(",".join([arch, *means, *values, str(own[0]["params"]), str(own[0]["macs"])]))
    return "\n".join(lines) + "\n"


def accuracies(rows: Rows, archs: Sequence[str], seeds: Sequence[int], name: str) -> list[list[float]]:
    """``found[seed][cell]``."""
    return [[rows[arch, seed][name] for arch in archs] for seed in seeds]


def regret_of_choosing(by: Sequence[float], judge: Sequence[float]) -> float:
    """What ``judge`` says is lost where the best by ``by`` is taken; the mean over its ties."""
    best = max(by)
    return max(judge) - statistics.fmean(j for b, j in zip(by, judge, strict=True) if b == best)


def noise_floor(test: Sequence[Sequence[float]], valid: Sequence[Sequence[float]]) -> dict[str, float]:
    """How far the table can be trusted; ``test[seed][cell]``, as :func:`accuracies` gives it.

    A seed is compared with the mean of the others, since it is itself a part of the mean of all. ``std`` is the root of
    the mean variance over seeds (n - 1), and the best fifth that of the means over all seeds.
    """
    from scipy.stats import kendalltau

    cells = list(zip(*test, strict=True))
    means = [statistics.fmean(cell) for cell in cells]
    best = sorted(range(len(cells)), key=lambda n: -means[n])[: max(2, len(cells) // 5)]
    pairs = list(itertools.combinations(range(len(test)), 2))

    def tau(a: Sequence[float], b: Sequence[float]) -> float:
        return float(kendalltau(a, b).statistic)

    def others(seed: int) -> list[float]:
        return [statistics.fmean(v for s, v in enumerate(cell) if s != seed) for cell in cells]

    def std(chosen: Sequence[int]) -> float:
        return statistics.fmean(statistics.variance(cells[n]) for n in chosen) ** 0.5

    return {
        "std over seeds, all cells": std(range(len(cells))),
        "std over seeds, the best fifth": std(best),
        "std of the means, the best fifth": statistics.stdev(means[n] for n in best),
        "regret of the best by one seed, judged by the others": statistics.fmean(
            regret_of_choosing(own, others(seed)) for seed, own in enumerate(test)
        ),
        "regret of the best by one seed's validation, judged by the mean": statistics.fmean(
            regret_of_choosing(own, means) for own in valid
        ),
        "Kendall tau between two seeds": statistics.fmean(tau(test[a], test[b]) for a, b in pairs),
        "Kendall tau between one seed and the mean of the others": statistics.fmean(
            tau(own, others(seed)) for seed, own in enumerate(test)
        ),
        "Kendall tau between two seeds, the best fifth": statistics.fmean(
            tau([test[a][n] for n in best], [test[b][n] for n in best]) for a, b in pairs
        ),
    }


def summary(rows: Rows, archs: Sequence[str], seeds: Sequence[int]) -> str:
    """Noise floor, best and worst, as Markdown."""
    test, valid = (accuracies(rows, archs, seeds, name) for name in ("test", "valid"))
    means = {arch: statistics.fmean(rows[arch, seed]["test"] for seed in seeds) for arch in archs}
    quartiles = zip(("quartile 1", "median", "quartile 3"), statistics.quantiles(means.values(), n=4), strict=True)
    lines = ["| figure | value |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in noise_floor(test, valid).items()]
    lines += [f"| {name} of the means | {v:.2f} |" for name, v in quartiles]
    lines += [f"| mean of all, which a random cell is worth | {statistics.fmean(means.values()):.2f} |"]
    ordered = sorted(archs, key=lambda arch: -means[arch])
    lines += ["", "| rank | cell | test | params |", "|---|---|---|---|"]
    for rank, arch in [*enumerate(ordered[:5], start=1), (len(archs), ordered[-1])]:
        lines.append(f"| {rank} | `{arch}` | {means[arch]:.2f} | {rows[arch, seeds[0]]['params']:,} |")
    seconds = sum(row["seconds"] for row in rows.values())
    about = f"Python {platform.python_version()}, {os.cpu_count()} cores; {len(rows)} trainings, {seconds:.0f} s in all"
    return "\n".join([*lines, "", about])


def plot(
    rows: Mapping[tuple[str, int], dict[str, Any]], archs: Sequence[str], seeds: Sequence[int], path: Path
) -> None:
    """Mean and standard deviation over the seeds of every cell, from the worst to the best; the best half again."""
    from matplotlib.figure import Figure

    own = {arch: [rows[arch, seed]["test"] for seed in seeds] for arch in archs}
    ordered = sorted(archs, key=lambda arch: statistics.fmean(own[arch]))
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    for axes, first in zip(figure.subplots(1, 2), (0, len(archs) // 2), strict=True):
        for count in range(STATES + 1):
            cells = [n for n in range(first, len(ordered)) if ordered[n].count("nor_conv_3x3") == count]
            means = [statistics.fmean(own[ordered[n]]) for n in cells]
            errors = [statistics.stdev(own[ordered[n]]) if len(seeds) > 1 else 0.0 for n in cells]
            style = {"fmt": "o", "markersize": 3, "linewidth": 0.8, "color": f"C{count}", "label": f"{count}"}
            axes.errorbar([n + 1 for n in cells], means, errors, **style)
        axes.set_xlabel("cells, from the worst to the best")
        axes.set_ylabel("test accuracy in %, mean ± std over seeds")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right", title="nor_conv_3x3")
    figure.savefig(path, dpi=120)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, each with one thread")
    parser.add_argument("--table", type=Path, help="the CSV file to write")
    parser.add_argument("--plot", type=Path, help="a picture of all accuracies to write")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the trainings would be left behind, waiting for more
    args.out.mkdir(parents=True, exist_ok=True)
    archs, file = list(all_archs(states=STATES)), args.out / "rows.jsonl"
    rows = finished_rows(file)
    wanted = [(arch, seed) for seed in args.seeds for arch in archs]
    train_missing(wanted, rows, file, args.jobs)
    rows = {key: rows[key] for key in wanted}
    if args.table is not None:
        write_atomic(args.table, table(rows, archs, args.seeds))
    if args.plot is not None:
        plot(rows, archs, args.seeds, args.plot)
    if len(args.seeds) > 1:
        print(summary(rows, archs, args.seeds))


if __name__ == "__main__":
    main()
