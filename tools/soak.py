"""Run a tiny search for hundreds of epochs, and see whether memory, open files and the time of a step stay as they are.

    python tools/soak.py OUT [--epochs 500] [--overrides +experiment=darts_digits debug=fast ...]

After every epoch, its checkpoint and its pictures included, the process is asked for its memory, its open files, its
threads and the number of Python's objects; the time of a step is the median of the epoch. The first tenth is left out:
buffers fill and curves are opened there. Of the rest a line is fitted (Theil and Sen, which a few slow epochs do not
bend), with a 95 % interval of its slope, and flat is what would grow by less than a limit over 500 epochs, or shows no
growth beyond the interval. Writes OUT/soak.json; the exit code is 1 unless all are flat.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from pathlib import Path

from scipy.stats import theilslopes

from supernet.build import build_search, build_space, build_task
from supernet.config import compose
from supernet.run import open_run
from supernet.runtime.files import write_atomic
from supernet.runtime.memory import memory_in_use
from supernet.runtime.signals import Interrupted
from supernet.spaces.genotype import Genotype

TINY = [
    "+experiment=darts_digits", "debug=fast", "space.nodes=1", "space.operations=[skip_connect,nor_conv_1x1]",
    "search.channels=2", "limit.images=64", "limit.steps=4", "limit.cells=3", "threads=1",
]  # fmt: skip
LIMITS = {"memory_MB": 0.02, "open_files": 0.0, "threads": 0.0, "objects": 0.02, "step_ms": 0.1}
"""By how much each may grow over 500 epochs, as a share of what it is."""
OVER = 500


def soak(folder: Path, epochs: int, overrides: list[str]) -> list[dict[str, float]]:
    """A sample per epoch."""
    config = compose([*overrides, f"search.epochs={epochs}", f"limit.epochs={epochs}", f"run_dir={folder}"])
    task = build_task(config)
    samples: list[dict[str, float]] = []
    times: list[float] = []
    with open_run(config, folder) as run:
        search = build_search(config, task, build_space(config, task), run.services)
        original = search.train_step

        def train_step() -> None:
            begun = time.perf_counter()
            original()
            times.append(1000 * (time.perf_counter() - begun))

        def sample(genotype: Genotype, step: int, epoch: int) -> None:
            gc.collect()  # what is left then is held by somebody
            samples.append(
                {
                    "epoch": epoch,
                    "memory_MB": memory_in_use(run.device) / 1e6,
                    "open_files": len(os.listdir("/proc/self/fd")),
                    "threads": len(os.listdir("/proc/self/task")),
                    "objects": len(gc.get_objects()),
                    "step_ms": statistics.median(times),
                }
            )
            times.clear()

        search.train_step = train_step  # type: ignore[method-assign]
        search.watchers.append(sample)
        try:
            run.job(search)
        except Interrupted:
            print(f"interrupted after {len(samples)} epochs: the verdict is on these")
    return samples


def verdicts(samples: list[dict[str, float]]) -> dict[str, dict[str, float | bool]]:
    """Of each figure: where it begins and ends, its growth over 500 epochs with an interval, and whether it is flat."""
    rest = samples[len(samples) // 10 :]
    found: dict[str, dict[str, float | bool]] = {}
    for name, limit in LIMITS.items():
        values = [sample[name] for sample in rest]
        slope, _, low, high = (float(v) * OVER for v in theilslopes(values, [sample["epoch"] for sample in rest]))
        level = statistics.median(values)
        found[name] = {
            "first": values[0],
            "last": values[-1],
            "median": level,
            f"growth_per_{OVER}_epochs": slope,
            "interval_low": low,
            "interval_high": high,
            "flat": slope <= limit * level or low <= 0,
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=OVER)
    parser.add_argument("--overrides", nargs="+", default=TINY)
    args = parser.parse_args()
    samples = soak(args.out / "run", args.epochs, args.overrides)
    found = verdicts(samples)
    write_atomic(args.out / "soak.json", json.dumps({"verdicts": found, "samples": samples}, indent=1))
    for name, v in found.items():
        growth = v[f"growth_per_{OVER}_epochs"]
        print(
            f"{name:12} {v['first']:10.5g} -> {v['last']:10.5g}   {growth:+.3g} per {OVER} epochs "
            f"({v['interval_low']:+.3g} to {v['interval_high']:+.3g}): {'flat' if v['flat'] else 'GROWS'}"
        )
    return 0 if all(v["flat"] for v in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
