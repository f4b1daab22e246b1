"""Damage files in every way and see what becomes of it: a table of kind, count and outcome.

    python tools/fault_test.py OUT [--flips 250] [--truncations 50] [--disks 10] [--fuzz 200] [--seed 0]

--flips, --truncations  of the newest checkpoint of a small run, one bit or one cut each; beside them empty files,
                        texts, and checkpoints of another tool, of another run and of a newer version
--disks                 runs that meet a full disk while they write (a limit on file sizes, and as root also a small
                        tmpfs), and are resumed when there is room: the result must be that of an undisturbed run
--fuzz                  texts that hypothesis makes, for each reader of genotypes, configurations, children and tables

Hostile files (pickles that call, bombs, links, pipes, odd names) are read in a process with 1.5 GB more memory than it
begins with and two minutes of time. Exit code 1 unless every outcome is the one promised.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fuzzing
import hostile
import torch
from kill_test import DEFAULT
from victims import fork_run, import_all, outcome, timeless, wait

from supernet.errors import UserError
from supernet.runtime import packing
from supernet.runtime.checkpoint import Checkpoints

MEMORY, SECONDS = 1_500_000_000, 120
Table = Counter[tuple[str, str]]


def guarded(kind: str, folder: Path) -> str:
    """What comes of reading a hostile file, in a process of its own with little memory and time."""
    folder = folder / "".join(c if c.isalnum() else "_" for c in kind)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        try:
            hostile.HOSTILE[kind](folder)
            said = "named, the previous one used" if kind.startswith("checkpoint") else "FAILED: it was read"
        except UserError as error:
            said = "refused in one sentence" if "\n" not in str(error) else f"FAILED: {error}"
        except BaseException:
            said = f"FAILED: {traceback.format_exc()}"
        os.write(write, said.encode(errors="replace")[:4000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    code = wait(pid)
    if (folder / hostile.MARK).exists():
        return "FAILED: it was executed"
    return said or f"FAILED: ended by signal {-code}"


def harm_flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def newer(path: Path, draw: random.Random) -> None:
    path.write_bytes(packing.pack({**packing.unpack(path), "version": packing.VERSION + 1}))


HARMS: dict[str, Callable[[Path, random.Random], Any]] = {
    "one bit flipped": harm_flip,
    "cut off": lambda path, draw: os.truncate(path, draw.randrange(1, path.stat().st_size)),
    "empty": lambda path, draw: path.write_bytes(b""),
    "a text": lambda path, draw: path.write_text("hello"),
    "of another tool": lambda path, draw: torch.save({"version": 1, "w": torch.zeros(3)}, path),
    "of a newer version": newer,
}


class Messages(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def damaged(kind: str, good: Path, folder: Path, draw: random.Random) -> str:
    """What comes of one damage to the newest of two good checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    previous, newest = sorted(folder.glob("step-*.pt"))[-2:]
    expected = timeless(packing.unpack(previous))
    HARMS[kind](newest, draw)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    log, messages = logging.getLogger("supernet"), Messages()
    log.addHandler(messages)
    log.propagate = False
    try:
        found = Checkpoints(folder).load_newest()
    except UserError as error:
        found = None
        messages.texts.append(str(error))
    finally:
        log.removeHandler(messages)
        log.propagate = True
    if {path.name: path.read_bytes() for path in folder.iterdir()} != before:
        return "FAILED: a file was touched"
    if not any(newest.name in text for text in messages.texts):
        return "FAILED: it was not named"
    if found is None:
        return "refused in one sentence" if kind == "of a newer version" else "FAILED: the run was given up"
    return "named, the previous one used" if timeless(found[0]) == expected else "FAILED: another state"


def limit_files(size: int) -> None:
    """In a victim: no file may grow beyond this, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def full_disk(run_dir: Path, size: int, expected: dict[str, Any], mount: bool) -> str:
    """A run that meets a full disk, and goes on when there is room."""
    shutil.rmtree(run_dir, ignore_errors=True)
    if mount:
        run_dir.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(run_dir)], check=True)
    log = run_dir.parent / f"{run_dir.name}.log"
    log.unlink(missing_ok=True)
    try:
        code = wait(fork_run(DEFAULT, run_dir, (lambda: None) if mount else partial(limit_files, size)))
        said = log.read_text()
        if code == 0:
            return "there was room enough, identical" if outcome(run_dir) == expected else "FAILED: not identical"
        if code != UserError.exit_code or "cannot write" not in said:
            return f"FAILED: exit code {code}: {said[-300:]}"
        if mount:
            subprocess.run(["mount", "-o", "remount,size=100m", str(run_dir)], check=True)
        if wait(fork_run(DEFAULT, run_dir)) or outcome(run_dir) != expected:
            return "FAILED: the resumed run is not identical"
        return "said in one sentence (exit code 2), resumed, identical"
    finally:
        if mount:
            subprocess.run(["umount", str(run_dir)], check=True)


def resumed(kind: str, run: Path, folder: Path, draw: random.Random, expected: dict[str, Any]) -> str:
    """A whole run that resumes where the newest checkpoint of its retraining is damaged."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run, folder)
    (folder / "report.json").unlink()
    HARMS[kind](max((folder / "checkpoints" / "retrain").glob("step-*.pt")), draw)
    same = wait(fork_run(DEFAULT, folder)) == 0 and outcome(folder) == expected
    return "resumed, identical" if same else "FAILED: not identical"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, count in (("flips", 250), ("truncations", 50), ("disks", 10), ("fuzz", 200), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=count)
    args = parser.parse_args()
    out, draw = args.out.resolve(), random.Random(args.seed)
    shutil.rmtree(out, ignore_errors=True)
    import_all()
    found: Table = Counter()
    for kind in hostile.HOSTILE:
        found[kind, guarded(kind, out / "hostile")] += 1
    whole = out / "whole"
    assert wait(fork_run(DEFAULT, whole)) == 0, (out / "whole.log").read_text()
    expected = outcome(whole)
    counts = {"one bit flipped": args.flips, "cut off": args.truncations}
    for kind in HARMS:
        for _ in range(counts.get(kind, 1)):
            said = damaged(kind, whole / "checkpoints" / "retrain", out / "damaged", draw)
            found[f"checkpoint: {kind}", said] += 1
        if kind != "of a newer version":
            found[f"run: a checkpoint that is {kind}", resumed(kind, whole, out / "run", draw, expected)] += 1
    largest = max(path.stat().st_size for path in whole.rglob("*.pt"))
    total = sum(path.stat().st_size for path in whole.rglob("*"))
    for n in range(args.disks):
        mount = os.geteuid() == 0 and n % 2 == 1
        size = draw.randrange(20_000, total if mount else largest)
        found["run: a full disk", full_disk(out / "disk", size, expected, mount)] += 1
    for kind in fuzzing.READERS:
        for said, count in fuzzing.fuzz(kind, args.fuzz, out).items() if args.fuzz else ():
            found[f"fuzz: {kind}", said] += count
    print("\n".join(f"{count:6d}  {kind}: {said}" for (kind, said), count in found.items()))
    failed = sum(count for (_, said), count in found.items() if said.startswith("FAILED"))
    print(f"{sum(found.values())} faults, {failed} with another outcome than promised")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
