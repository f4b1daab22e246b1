"""Runs that are ended by force: forked from a process that has imported everything, killed at a moment or at a place,
and compared with a run that nobody disturbed."""

from __future__ import annotations

import builtins
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from supernet.config import compose
from supernet.runtime import checkpoint, files
from supernet.runtime.checkpoint import Checkpoints
from supernet.train import train

TIMES = {"seconds", "time", "images_per_second"}
Prepare = Callable[[], None]
"""What a victim does to itself before it runs."""


def import_all() -> None:
    """What a run imports, so that a victim costs little more than its work."""
    for module in ("build", "run_summary", "report.run_report"):
        importlib.import_module(f"supernet.{module}")
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)  # imports what the first optimiser imports


def fork_run(overrides: list[str], run_dir: Path, prepare: Prepare = lambda: None) -> int:
    """Start ``train`` in a forked process, and give its id; its exit code is that of the command."""
    run_dir.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with (run_dir.parent / f"{run_dir.name}.log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            prepare()
            train(compose([*overrides, f"run_dir={run_dir}", "resume=auto"]), run_dir)
            code = 0
    except BaseException as error:
        traceback.print_exc()
        code = getattr(error, "exit_code", 1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """The exit code; negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def cpu_seconds(pid: int) -> float:
    """What a process has computed so far: unlike the time of the clock, it does not depend on what else runs."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ended(pid: int, seconds: float) -> int | None:
    """Wait until a victim has computed for so long; the exit code of one that ends before."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if cpu_seconds(pid) >= seconds:
            return None
        time.sleep(0.002)


def die() -> None:
    """As kill -9 does it."""
    os.kill(os.getpid(), signal.SIGKILL)


def dies_half_written(nth: int) -> None:
    """Half of a checkpoint is in its temporary file."""
    opened = [0]

    def half_writing(path: Any, mode: str) -> Any:
        file = builtins.open(path, mode)  # noqa: SIM115 (whoever called closes it)
        opened[0] += ".pt." in Path(path).name
        if opened[0] == nth:
            raw = file.write

            class Half:
                def __enter__(self) -> Half:
                    return self

                def __exit__(self, *_: object) -> None:
                    file.close()

                def write(self, content: bytes) -> None:
                    raw(content[: len(content) // 2])
                    file.flush()
                    die()

            return Half()
        return file

    vars(files)["open"] = half_writing


def _dies_around(owner: Any, name: str, nth: int, *, before: bool, counts: Callable[..., bool]) -> None:
    original, seen = getattr(owner, name), [0]

    def wrapped(*args: Any) -> Any:
        seen[0] += counts(*args)
        hit = counts(*args) and seen[0] == nth
        if hit and before:
            die()
        result = original(*args)
        if hit:
            die()
        return result

    setattr(owner, name, wrapped)


def _is_checkpoint(*args: Any) -> bool:
    return str(args[-1]).endswith(".pt")


def _always(*_: Any) -> bool:
    return True


PLACES: dict[str, Callable[[int], None]] = {
    "half of a checkpoint written": dies_half_written,
    "before its rename": lambda n: _dies_around(os, "replace", n, before=True, counts=_is_checkpoint),
    "after its rename": lambda n: _dies_around(os, "replace", n, before=False, counts=_is_checkpoint),
    "between rename and prune": lambda n: _dies_around(Checkpoints, "_retain", n, before=True, counts=_always),
    "within the prune": lambda n: _dies_around(checkpoint, "_remove", n, before=False, counts=_always),
}
"""Where a victim kills itself: at the n-th time that it comes by."""


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
