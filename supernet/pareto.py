"""Several objectives at once: what no other architecture beats in all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from supernet.report.plots import scatter
from supernet.runtime.files import write_atomic

UNITS = {
    "flops": "multiply-adds of the child",
    "params": "weights of the child",
    "latency": "milliseconds of the child",
}


def front(objectives: Sequence[tuple[float, ...]]) -> list[int]:
    """Indices of the points that no other one dominates: none is at least as large in all and larger in one."""
    return [
        i
        for i, mine in enumerate(objectives)
        if not any(other != mine and all(o >= m for o, m in zip(other, mine, strict=True)) for other in objectives)
    ]


def write_front(judged: Mapping[str, Mapping[str, float]], cost: str, directory: Path) -> None:
    """``pareto.json`` and ``pareto.md``, the front of accuracy and cost by genotype, and ``pareto.png``, all that was
    judged with the front marked (where matplotlib is installed)."""
    names = list(judged)
    best = set(front([(judged[name]["accuracy"], -judged[name]["cost"]) for name in names]))
    on_front = sorted((names[i] for i in best), key=lambda name: judged[name]["cost"])
    rows = [{"genotype": name, **judged[name]} for name in on_front]
    write_atomic(directory / "pareto.json", json.dumps(rows, indent=1) + "\n")
    lines = [f"| {UNITS[cost]} | validation accuracy | loss | genotype |", "|---|---|---|---|"]
    lines += [
        f"| {row['cost']:,.6g} | {row['accuracy']:.2%} | {row['loss']:.4g} | `{row['genotype']}` |" for row in rows
    ]
    write_atomic(directory / "pareto.md", "\n".join(lines) + "\n")
    points = {
        "judged": [(judged[n]["cost"], judged[n]["accuracy"]) for i, n in enumerate(names) if i not in best],
        "not dominated": [(judged[n]["cost"], judged[n]["accuracy"]) for n in on_front],
    }
    png = scatter(points, x=UNITS[cost], y="validation accuracy on the shared weights")
    if png is not None:
        write_atomic(directory / "pareto.png", png)
