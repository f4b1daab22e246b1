"""Kill runs with SIGKILL at random moments, resume them, and compare with a run that nobody disturbed, bit for bit.

    python tools/kill_test.py OUT [--kills 50] [--seed 0] [--overrides +experiment=darts_digits debug=fast ...]

Each trial is a run in a directory of its own that is killed once or twice at a moment drawn uniformly over the length
of the undisturbed run (search, derivation, retraining, checkpoint writes, test), and then resumed to its end with
resume=auto. Compared are the child's weights, the genotype, report.json and metrics.jsonl (times aside), and every
tensor of the last checkpoints (weights, alpha, optimisers, bookkeeping). Exit code 1 unless all are identical.

Victims are forked from one process that has imported everything, so a trial costs little more than its work.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from supernet.config import compose
from supernet.runtime.checkpoint import Checkpoints
from supernet.train import train

TIMES = {"seconds", "time", "images_per_second"}
DEFAULT = ["+experiment=darts_digits", "debug=fast", "limit.epochs=3", "threads=1"]


def fork_run(overrides: list[str], run_dir: Path) -> int:
    """Start ``train`` in a forked process; its exit code is 0 where it finishes."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with (run_dir.parent / f"{run_dir.name}.log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            train(compose([*overrides, f"run_dir={run_dir}", "resume=auto"]), run_dir)
            code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(overrides: list[str], run_dir: Path) -> int:
    """Run to the end; the exit status."""
    run_dir.mkdir(parents=True, exist_ok=True)
    return os.waitstatus_to_exitcode(os.waitpid(fork_run(overrides, run_dir), 0)[1])


def kill_after(overrides: list[str], run_dir: Path, seconds: float) -> bool:
    """Run and kill; False where the run was over before."""
    run_dir.mkdir(parents=True, exist_ok=True)
    pid = fork_run(overrides, run_dir)
    time.sleep(seconds)
    done, _ = os.waitpid(pid, os.WNOHANG)
    if done:
        return False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def timeless(value: Any) -> Any:
    """Nested lists and dicts without times; tensors as bytes."""
    if isinstance(value, dict):
        return {key: timeless(v) for key, v in value.items() if key not in TIMES}
    if isinstance(value, (list, tuple)):
        return [timeless(v) for v in value]
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return value


def outcome(run_dir: Path) -> dict[str, Any]:
    """All that must not depend on interruptions."""
    found: dict[str, Any] = {
        "child": (run_dir / "child.safetensors").read_bytes(),
        "genotype": (run_dir / "genotype.json").read_text(),
        "report": timeless(json.loads((run_dir / "report.json").read_text())),
        "metrics": [timeless(json.loads(line)) for line in (run_dir / "metrics.jsonl").read_text().splitlines()],
    }
    for folder in sorted((run_dir / "checkpoints").iterdir()):
        newest = Checkpoints(folder).load_newest()
        assert newest is not None
        state = newest[0]
        found[folder.name] = timeless({name: state[name] for name in ("parts", "position")})
    return found


def trial(overrides: list[str], run_dir: Path, length: float, draw: random.Random) -> tuple[int, int]:
    """Kill once or twice, then finish: (kills that hit, exit code of the last resume)."""
    hits = sum(kill_after(overrides, run_dir, draw.uniform(0, length)) for _ in range(draw.choice((1, 2))))
    return hits, finish(overrides, run_dir)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overrides", nargs="*", default=DEFAULT)
    args = parser.parse_args()
    out, draw = args.out.resolve(), random.Random(args.seed)
    for module in ("build", "run_summary", "report.run_report"):
        importlib.import_module(f"supernet.{module}")
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)  # imports what the first optimiser imports
    shutil.rmtree(out, ignore_errors=True)
    start = time.monotonic()
    assert finish(args.overrides, out / "undisturbed") == 0, (out / "undisturbed.log").read_text()
    length = time.monotonic() - start
    expected = outcome(out / "undisturbed")
    kills = trials = 0
    wrong: list[str] = []
    while kills < args.kills:
        run_dir = out / f"trial-{trials}"
        hits, code = trial(args.overrides, run_dir, length, draw)
        kills, trials = kills + hits, trials + 1
        differing = [f"exit code {code}"] if code else [k for k, v in outcome(run_dir).items() if v != expected[k]]
        if differing:
            wrong.append(f"{run_dir.name}: {', '.join(differing)}")
        else:
            shutil.rmtree(run_dir)
    print(f"{kills} kills in {trials} runs of {length:.1f} s; {trials - len(wrong)} identical, {len(wrong)} not")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
