"""How fast is a search step, and what does it keep? Plain modules against banks, in one process, run in turn.

    python tools/bench.py [--size published|small ...] [--update first_order|unrolled ...] [--repeats 5] [--growth]
        [--parts costs|steps|loader|sampled ...] [--settings] [--ablate] [--demo] [--cpu] [--json FILE]

Variants: ``plain`` (NCHW, as the published code runs), ``plain_cl`` (the same in channels-last), ``banked``, and
``compiled``; the first step of each is not counted. For each, and for first-order and
unrolled steps: ``costs`` are dispatched operations that are not views, bytes kept for backward by a weight pass, and
peak memory of a step above the idle process, in a process of its own; ``steps`` are median and range of seconds per
step and the ratio to plain. ``sampled`` compares the weight step of a sampled path with the same network built alone.
``loader`` is the share of a step that batches take. ``--growth`` doubles batch, channels, cells and nodes at the small
size, one by one; ``--parts`` measures some of these alone (costs need no idle machine). Instead of the above,
``--settings`` measures each line of the table of settings in docs/performance.md, ``--ablate`` the banks without one of
their parts, and ``--demo`` the search of ``make demo``. With ``--json`` every part is written as soon as it is known,
and what the file already has is not measured again. With ``--cpu`` there is one thread, and seconds are those that the
processor works on it, so that other work on the machine hardly counts: for ratios on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from supernet.build import build_search, build_space
from supernet.config import compose
from supernet.data.images import ImageData, Images
from supernet.loop import Services
from supernet.report.progress import Progress
from supernet.report.recorder import Recorder
from supernet.runtime.compute import set_deterministic
from supernet.runtime.memory import keep_freed_memory
from supernet.runtime.signals import Interrupt
from supernet.search import Search
from supernet.spaces.banks import passes
from supernet.spaces.banks.bank import Bank, BankedFanOut
from supernet.spaces.banks.depthwise import same_padding
from supernet.spaces.genotype import CellGenotype, Genotype
from supernet.tasks.images import ImageClassification
from supernet.types import CellMixing, GroupMixing, Mixing

SIZES = {
    "published": {"batch": 64, "channels": 16, "cells": 8, "nodes": 4, "image": 32},
    "small": {"batch": 32, "channels": 8, "cells": 3, "nodes": 4, "image": 16},
}
VARIANTS = {
    "plain": ["engine=plain", "memory_format=contiguous"],
    "plain_cl": ["engine=plain", "memory_format=channels_last"],
    "banked": ["engine=banked"],
    "compiled": ["engine=compiled"],
}
SETTINGS = {
    "compiled": [],
    "engine=banked": ["engine=banked"],
    "precision=bf16": ["precision=bf16"],
    "memory_format=contiguous": ["memory_format=contiguous"],
    "compile=true": ["compile=true"],
    "deterministic=true": ["deterministic=true"],
}
UPDATES = ("first_order", "unrolled")
ROUTINE = ("costs", "steps", "loader", "sampled")
"""The parts that are measured where nothing else is asked for."""


def library_gradients(
    g_BEHW: Tensor, x_BEHW: Tensor | None, weight: Tensor, size: Any, geometry: tuple[int, int], wants: Any
) -> list[Tensor | None]:
    """Gradients of depthwise convolutions as the library computes them."""
    stride, dilation = geometry
    padding = same_padding(weight.shape[-1], dilation)
    x = g_BEHW.new_empty(size).contiguous(memory_format=torch.channels_last) if x_BEHW is None else x_BEHW
    rest = ([stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], len(weight), [*wants[:2], False])
    found = torch.ops.aten.convolution_backward(g_BEHW, x, weight, None, *rest)
    return [g if want else None for g, want in zip(found, wants[:2], strict=False)]


def edge_by_edge(self: BankedFanOut, p: CellMixing) -> Any:
    """Every edge as a bank of its own."""
    banks, others = SORT(self, p)
    return [Bank([e], [row]) for bank in banks for e, row in zip(bank.edges, bank.rows, strict=True)], others


SORT = BankedFanOut._sort
BANKS = "supernet.spaces.banks"
PARTS: dict[str, dict[str, Any]] = {
    "banked": {},
    "without depthwise forms": {f"{BANKS}.stages.gradients": library_gradients},
    "without dense products of narrow blocks": {f"{BANKS}.stages.WIDE": 0},
    "without shared ReLUs and pools": {f"{BANKS}.features.Features._once": lambda self, key, make: make()},
    "with every product kept": {f"{BANKS}.stages.Term.keep": lambda self, x, y, wants: (x, y)},
    "without merging edges": {f"{BANKS}.bank.BankedFanOut._sort": edge_by_edge},
}
"""Parts of the banks that :func:`ablate` does without, and how: what it puts in the place of what."""


def build(size: dict[str, int], variant: str, update: str) -> Search:
    """A search on random images of the size, at its first step."""
    changes = {**VARIANTS, **SETTINGS}[variant]
    overrides = [f"search.{key}={size[key]}" for key in ("batch", "channels", "cells")]
    folder = tempfile.mkdtemp()
    config = compose([*overrides, f"space.nodes={size['nodes']}", f"update={update}", f"run_dir={folder}", *changes])
    draw = torch.Generator().manual_seed(0)
    count, side = 8 * size["batch"], size["image"]
    x_NCHW = torch.randint(256, (count, 3, side, side), generator=draw, dtype=torch.uint8)
    images = Images(x_NCHW, torch.arange(count) % 10)
    data = ImageData("random", tuple("0123456789"), images, images, (0.5,) * 3, (0.25,) * 3, 4, True)
    task = ImageClassification(data)
    services = Services(torch.device("cpu"), Recorder(Path(folder)), Progress(), Interrupt())
    search = build_search(config, task, build_space(config, task), services)
    search.begin_epoch()
    return search


def step(search: Search) -> None:
    """One search step of the real loop."""
    search.train_step()
    search.step_in_epoch = (search.step_in_epoch + 1) % search.steps_per_epoch


clock = time.perf_counter
"""Of all measurements; ``--cpu`` makes it the processor time of this process."""


def interleaved(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each callable, run in turn, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, run in steps.items():
            start = clock()
            run()
            if repeat:
                seconds[name].append(clock() - start)
    return seconds


class CountOperations(TorchDispatchMode):
    """Counts dispatched operations whose result is not a view of an argument, and compiled passes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        self.count += not view
        return func(*args, **(kwargs or {}))

    def counted(self, call: Callable[..., None]) -> Callable[..., None]:
        """The function, its calls counted as well."""

        def once(*args: Any) -> None:
            self.count += 1
            call(*args)

        return once


def kept_bytes(search: Search) -> int:
    """Bytes that one weight pass keeps for its backward, each storage once, weights not counted."""
    weights = {w.untyped_storage().data_ptr() for w in search.weights}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ctx = search.context()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = ctx.run("weights", ctx.mixing("weights").detach())
    del result
    return sum(kept.values())


def status(key: str) -> int:
    """A line of the process's status in bytes (Linux)."""
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{key}:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024


def costs(size: dict[str, int], variant: str, update: str) -> dict[str, float]:
    """Peak of two steps above the process before them, operations of a step, and what a weight pass keeps; to be called
    in a process of its own."""
    search = build(size, variant, update)
    idle = status("VmRSS")
    for _ in range(2):
        step(search)
    peak = status("VmHWM") - idle
    with CountOperations() as counter, patch.object(passes, "_call", counter.counted(passes._call)):
        step(search)
    return {"operations": counter.count, "kept_mb": kept_bytes(search) / 2**20, "peak_mb": peak / 2**20}


def costs_in_subprocess(name: str, variant: str, update: str) -> dict[str, float]:
    """:func:`costs`, in a new process."""
    command = [sys.executable, __file__, "--costs", name, variant, update]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.split("\n")[-2])
    return found


def costs_of_all(name: str, update: str) -> list[dict[str, Any]]:
    """What every variant costs beside time."""
    return [{"size": name, "update": update, "variant": v, **costs_in_subprocess(name, v, update)} for v in VARIANTS]


def measure(name: str, repeats: int, update: str) -> list[dict[str, Any]]:
    """The rows of one size and update; figures go to stderr as soon as they are known, since this takes long."""
    searches = {v: build(SIZES[name], v, update) for v in VARIANTS}
    seconds = interleaved({v: lambda s=s: step(s) for v, s in searches.items()}, repeats)
    plain = statistics.median(seconds["plain"])
    rows = []
    for variant, each in seconds.items():
        row = {"size": name, "update": update, "variant": variant, "seconds": statistics.median(each)}
        row |= {"least": min(each), "most": max(each), "times_faster": plain / statistics.median(each)}
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def ablate(name: str, repeats: int) -> list[dict[str, Any]]:
    """First-order steps of the banks without one of their parts, interleaved: what each part contributes."""
    search = build(SIZES[name], "banked", "first_order")
    compiled = build(SIZES[name], "compiled", "first_order")

    def without(part: str) -> None:
        with ExitStack() as patches:
            for target, other in PARTS[part].items():
                patches.enter_context(patch(target, other))
            step(search)

    steps: dict[str, Callable[[], None]] = {part: lambda part=part: without(part) for part in PARTS}
    seconds = interleaved({**steps, "with compiled passes": lambda: step(compiled)}, repeats)
    median = {part: statistics.median(each) for part, each in seconds.items()}
    return [
        {"size": name, "part": part, "seconds": median[part], "over_banked": median[part] / median["banked"]}
        for part in median
    ]


def sampled(name: str, repeats: int) -> list[dict[str, Any]]:
    """A weight step on one sampled path (all edges, one operation each) against the same network built alone."""
    size = SIZES[name]
    search = build(size, "compiled", "first_order")
    space = search.parts.space
    draw = torch.Generator().manual_seed(1)
    groups, cells = {}, {}
    for g in space.groups:
        options = [int(k) for k in torch.randint(1, len(g.options), (g.decisions,), generator=draw)]
        op_LNK = nn.functional.one_hot(torch.tensor([options]), len(g.options)).float()
        groups[g.name] = GroupMixing(op_LNK, g.mask_NK, active_LN=(tuple(options),))
        nodes = [
            tuple((g.options[k], s) for k, s, t in zip(options, g.sources, g.targets, strict=True) if t == node)
            for node in sorted(set(g.targets))
        ]
        cells[g.name] = CellGenotype(tuple(nodes), tuple(sorted(set(g.targets))))
    p = Mixing(groups)
    space_alone = type(space)(
        3, 10, nodes=size["nodes"], child_channels=size["channels"], child_cells=size["cells"], auxiliary=False
    )
    alone = space_alone.build_child(Genotype(cells))
    x, y = search.batches["weights"].batch(0)

    def weight_step(net: Callable[[], Tensor], weights: list[nn.Parameter], sgd: torch.optim.Optimizer) -> None:
        nn.functional.cross_entropy(net(), y).backward()
        nn.utils.clip_grad_norm_(weights, 5.0)
        sgd.step()
        sgd.zero_grad(set_to_none=True)

    child_weights = list(alone.parameters())
    child_sgd = torch.optim.SGD(child_weights, lr=0.025, momentum=0.9, weight_decay=3e-4, foreach=True)
    steps = {
        "path": lambda: weight_step(lambda: search.parts.net(x, p), search.weights, search.weight_optimizer),
        "alone": lambda: weight_step(lambda: alone(x), child_weights, child_sgd),
    }
    seconds = {k: statistics.median(v) for k, v in interleaved(steps, repeats).items()}
    return [{"size": name, **seconds, "ratio": seconds["path"] / seconds["alone"]}]


def loader(name: str, repeats: int) -> list[dict[str, Any]]:
    """Seconds that the two batches of a step take, and their share of the fastest first-order step."""
    search = build(SIZES[name], "compiled", "first_order")
    batches, steps = [], []
    for i in range(8 * repeats):
        start = clock()
        search.batches["weights"].batch(i)
        search.batches["alpha"].batch(i)
        batches.append(clock() - start)
    for _ in range(repeats):
        start = clock()
        step(search)
        steps.append(clock() - start)
    seconds = statistics.median(batches)
    return [{"size": name, "seconds": seconds, "share": seconds / statistics.median(steps)}]


def growth(repeats: int) -> list[dict[str, Any]]:
    """First-order step at the small size with one thing doubled, over the step without."""
    sizes = {"small": SIZES["small"]}
    sizes |= {key: {**SIZES["small"], key: 2 * SIZES["small"][key]} for key in ("batch", "channels", "cells", "nodes")}
    rows = []
    for variant in ("plain", "banked", "compiled"):
        searches = {key: build(size, variant, "first_order") for key, size in sizes.items()}
        seconds = interleaved({k: lambda s=s: step(s) for k, s in searches.items()}, repeats)
        base = statistics.median(seconds["small"])
        rows.append(
            {"variant": variant, **{k: statistics.median(v) / base for k, v in seconds.items() if k != "small"}}
        )
    return rows


def settings(name: str, repeats: int) -> list[dict[str, Any]]:
    """First-order steps under each setting, interleaved; ``first`` is the first step, where compilation happens."""
    searches = {v: build(SIZES[name], v, "first_order") for v in SETTINGS}
    first = {}

    def run(variant: str) -> None:
        set_deterministic(variant == "deterministic=true")
        start = time.perf_counter()
        step(searches[variant])
        first.setdefault(variant, time.perf_counter() - start)

    seconds = interleaved({v: lambda v=v: run(v) for v in searches}, repeats)
    set_deterministic(False)
    median = {v: statistics.median(each) for v, each in seconds.items()}
    return [
        {
            "size": name,
            "setting": v,
            "seconds": median[v],
            "over_default": median[v] / median["compiled"],
            "first": first[v],
        }
        for v in SETTINGS
    ]


def demo() -> list[dict[str, Any]]:
    """The search of ``make demo`` with each engine: seconds of the process and accuracy on the validation part."""
    rows = []
    for engine in ("plain", "banked", "compiled"):
        with tempfile.TemporaryDirectory() as folder:
            overrides = ["+experiment=darts_digits", "retrain.epochs=0", f"engine={engine}", f"run_dir={folder}/run"]
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "supernet.train", *overrides], check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            log = (Path(folder) / "run" / "run.log").read_text()
        found = re.findall(r"valid_accuracy[= ]+([\d.]+)", log)
        rows.append({"engine": engine, "seconds": seconds, "valid_accuracy": found[-1] if found else ""})
    return rows


class Result:
    """What has been measured, part by part; kept in a file where one is named."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.parts: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self.place = {
            "date": str(date.today()),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
        }
        if path is not None and path.exists():
            self.parts = json.loads(path.read_text())["parts"]

    def add(self, part: str, name: str, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Measure what is not there yet, and write."""
        found = self.parts.setdefault(part, {})
        if name not in found:
            found[name] = make()
            print(part, json.dumps(found[name]), file=sys.stderr, flush=True)
            if self.path is not None:
                self.path.write_text(json.dumps({**self.place, "parts": self.parts}, indent=1) + "\n")
        return found[name]


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    if not rows:
        return ""
    cells = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--update", nargs="*", default=list(UPDATES), choices=list(UPDATES))
    parser.add_argument("--parts", nargs="*", default=list(ROUTINE), choices=ROUTINE)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--settings", action="store_true")
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--ablate", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--costs", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    keep_freed_memory()  # as a run does
    if args.costs:
        print(json.dumps(costs(SIZES[args.costs[0]], *args.costs[1:])))
        return
    if args.cpu:
        global clock
        clock = time.process_time
        torch.set_num_threads(1)
    result = Result(args.json)
    if args.settings or args.demo or args.ablate:
        for name in args.size if args.ablate else ():
            result.add("ablate", name, lambda name=name: ablate(name, args.repeats))
        for name in args.size if args.settings else ():
            result.add("settings", name, lambda name=name: settings(name, args.repeats))
        if args.demo:
            result.add("demo", "digits", demo)
    else:
        for name in args.size:
            for update in args.update if "costs" in args.parts else ():
                # First, while this process is small: it keeps what it frees.
                result.add("costs", f"{name} {update}", lambda n=name, u=update: costs_of_all(n, u))
            for update in args.update if "steps" in args.parts else ():
                result.add("steps", f"{name} {update}", lambda n=name, u=update: measure(n, args.repeats, u))
            if "loader" in args.parts:
                result.add("loader", name, lambda n=name: loader(n, args.repeats))
            if "sampled" in args.parts:
                result.add("sampled", name, lambda name=name: sampled(name, args.repeats))
        if args.growth:
            result.add("growth", "small", lambda: growth(args.repeats))
    for part, found in result.parts.items():
        print(f"\n{part}\n\n{table([row for rows in found.values() for row in rows])}")


if __name__ == "__main__":
    main()
