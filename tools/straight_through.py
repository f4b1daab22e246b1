"""What GDAS's gradient says of `none`, and what is true of the same supernet, after a search in NAS-Bench-201.

    python tools/straight_through.py RUN --draws 60

RUN is the directory of a finished search of method=gdas. Cells are drawn uniformly, each with its own batch of alpha's
data. For every edge that drew an operation, the gradient of the one-hot p says by how much the loss would change if
`none` stood there, dL/dp_none - dL/dp_drawn, where dL/dp_none = 0; the true change comes from evaluating that cell. The
column "level" is the loss with that operation on an edge, less the mean over the five operations on the same edge.
± is the standard error, as if edges of one cell were independent, which they are not quite.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from supernet.build import build_search, build_space, build_task
from supernet.config import from_yaml
from supernet.interfaces import StepContext
from supernet.loop import Services
from supernet.report.progress import Progress
from supernet.report.recorder import Recorder
from supernet.run import CONFIG_FILE
from supernet.runtime.checkpoint import Checkpoints
from supernet.runtime.signals import Interrupt
from supernet.search import Search
from supernet.types import Group, GroupMixing, Mixing

Found = dict[str, dict[str, list[float]]]
"""Numbers by column and operation."""


def cell(group: Group, chosen: list[int]) -> Mixing:
    """The one-hot p of a cell, which alone is computed."""
    p_LNK = torch.eye(len(group.options))[chosen][None]
    return Mixing({group.name: GroupMixing(p_LNK, group.mask_NK, active_LN=(tuple(chosen),))})


def measure(ctx: StepContext, group: Group, chosen: list[int], found: Found) -> None:
    """Compare on every edge of one cell and one batch."""
    leaf = cell(group, chosen).leaf()
    loss = ctx.run("alpha", leaf).loss
    if not loss.requires_grad:
        return  # none everywhere
    (g_LNK,) = torch.autograd.grad(loss, leaf.tensors(), allow_unused=True, materialize_grads=True)
    drawn = float(loss.detach())
    for n, k in enumerate(chosen):
        losses = []
        for other in range(len(group.options)):
            with torch.no_grad():
                instead = cell(group, [*chosen[:n], other, *chosen[n + 1 :]])
                losses.append(drawn if other == k else float(ctx.run("alpha", instead).loss))
        mean = sum(losses) / len(losses)
        for name, value in zip(group.options, losses, strict=True):
            found["level"][name].append(value - mean)
        none = group.options.index("none")
        if k != none:
            found["claimed"][group.options[k]].append(float(g_LNK[0, n, none] - g_LNK[0, n, k]))
            found["true"][group.options[k]].append(losses[none] - drawn)


def table(found: Found, options: tuple[str, ...]) -> str:
    """A line for each operation."""
    lines = [
        "| operation | level | `none` instead, by the gradient | `none` instead, truly | edges |",
        "|---|---|---|---|---|",
    ]
    for name in options:
        row = [shown(found[column][name]) for column in ("level", "claimed", "true")]
        lines.append(f"| {name} | {' | '.join(row)} | {len(found['true'][name])} |")
    claimed, true = (torch.tensor([v for o in options for v in found[c][o]]) for c in ("claimed", "true"))
    said = f"`none` is better on {share(claimed)} of these edges by the gradient, and on {share(true)} truly; "
    return "\n".join(lines) + f"\n\n{said}correlation {float(torch.corrcoef(torch.stack([claimed, true]))[0, 1]):.2f}."


def share(values: Tensor) -> str:
    return f"{100 * float((values < 0).float().mean()):.0f} %"


def shown(values: list[float]) -> str:
    """Mean ± standard error."""
    if len(values) < 2:
        return "-"
    numbers = torch.tensor(values)
    return f"{float(numbers.mean()):+.3f} ± {float(numbers.std()) / len(values) ** 0.5:.3f}"


def trained(run: Path, services: Services) -> Search:
    """The search of a run at its newest checkpoint."""
    config = from_yaml((run / CONFIG_FILE).read_text())
    task = build_task(config)
    search = build_search(config, task, build_space(config, task), services)
    state = Checkpoints(run / "checkpoints" / search.phase).load_newest()
    if state is None:
        raise SystemExit(f"error: {run} has no checkpoint of its search")
    search.load_state_dict(state[0]["parts"])
    search.parts.net.train()
    return search


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--draws", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, Recorder(Path(folder)) as recorder, Interrupt() as interrupt:
        search = trained(args.run, Services(torch.device("cpu"), recorder, Progress(), interrupt))
        (group,) = search.parts.space.groups
        noise = torch.Generator().manual_seed(search.config.seed)
        found: Found = defaultdict(lambda: defaultdict(list))
        for draw in range(args.draws):
            search.step_in_epoch = draw % search.weight_steps
            chosen = torch.randint(len(group.options), (group.decisions,), generator=noise).tolist()
            measure(search.context(), group, chosen, found)
    print(table(found, group.options))


if __name__ == "__main__":
    main()
