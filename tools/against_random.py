"""Does the search help? Children of searches against children of random genotypes of the same space, retrained alike.

    python tools/against_random.py OUT [--overrides +experiment=darts_digits] [--seeds 0 1 2] [--random 5]

For every seed: one search with its child, and N random genotypes retrained with the same settings and seed. Each run
has its own directory in OUT and resumes there, so an interrupted command is simply repeated; finished runs are kept.
Prints a table and the paired difference (searched minus the mean of random) with a 95 % t interval over seeds, and
writes both to OUT/against_random.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from supernet.build import build_space, build_task
from supernet.config import compose
from supernet.derive.random import random_genotype
from supernet.runtime.files import write_atomic
from supernet.runtime.random import generator
from supernet.train import retrain, train


def run(command: Any, overrides: list[str], run_dir: Path) -> float:
    """Test accuracy of a run, done now unless its report is there."""
    report = run_dir / "report.json"
    if not report.exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        command(compose([*overrides, f"run_dir={run_dir}", "resume=auto"]), run_dir)
    return float(json.loads(report.read_text())["child"]["test"]["accuracy"])


def one_seed(overrides: list[str], seed: int, count: int, out: Path) -> dict[str, Any]:
    """The searched child's and the random children's test accuracies."""
    overrides = [*overrides, f"seed={seed}"]
    searched = run(train, overrides, out / f"search-{seed}")
    config = compose([*overrides, f"run_dir={out}"])
    space = build_space(config, build_task(config))
    draws = generator(seed, "against_random")
    random = []
    for i in range(count):
        file = out / f"random-{seed}-{i}.json"
        write_atomic(file, json.dumps(random_genotype(space, draws).to_json()))
        random.append(run(retrain, [*overrides, f"genotype={file}"], out / f"random-{seed}-{i}"))
    return {"seed": seed, "searched": searched, "random": random}


def paired_interval(differences: list[float]) -> tuple[float, float]:
    """Mean difference and the half width of its 95 % t interval."""
    from scipy import stats

    n = len(differences)
    mean = sum(differences) / n
    if n < 2:
        return mean, float("nan")
    std = (sum((d - mean) ** 2 for d in differences) / (n - 1)) ** 0.5
    return mean, float(stats.t.ppf(0.975, n - 1)) * std / n**0.5


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--overrides", nargs="*", default=["+experiment=darts_digits"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--random", type=int, default=5)
    args = parser.parse_args()
    rows = [one_seed(args.overrides, seed, args.random, args.out.resolve()) for seed in args.seeds]
    print("| seed | searched | random: mean | random: each |\n|---|---|---|---|")
    differences = []
    for row in rows:
        mean = sum(row["random"]) / len(row["random"])
        differences.append(row["searched"] - mean)
        each = " ".join(f"{a:.2%}" for a in row["random"])
        print(f"| {row['seed']} | {row['searched']:.2%} | {mean:.2%} | {each} |")
    mean, half = paired_interval(differences)
    print(f"\npaired difference: {mean:+.2%} ± {half:.2%} (95 % t interval, n = {len(rows)} seeds)")
    result = {"rows": rows, "difference": mean, "half_width": half}
    write_atomic(args.out / "against_random.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
