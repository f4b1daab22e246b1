"""How well does a supernet rank architectures? ``python -m supernet.rank run=DIR [n=200] [benchmark.path=FILE]``"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supernet.arguments import import_named, read_arguments, run_command
from supernet.config import from_yaml
from supernet.errors import UserError
from supernet.schema import Config

if TYPE_CHECKING:
    from supernet.decisions import Decisions, Values
    from supernet.search import Search

USAGE = """python -m supernet.rank run=DIR [n=200] [seed=0] [epoch=E] [images=N] [benchmark=NAME benchmark.path=FILE]

Judge n random subgraphs by the shared weights of a run, and compare with the truth: the table of a benchmark (the run's
own, or one named here), or else children that are trained from scratch as the run would retrain them and tested (n=20
then; this takes n retrainings). Prints Kendall's tau, Spearman's rho and the precision of the top tenth of the loss and
of the accuracy, with the subgraphs' own batch-norm statistics and with the tracked ones where norms track, beside that
of the parameter count; images=N judges by about N validation images instead of all. Writes rank.json, rank.md and
rank.png into the run directory; the run's report shows them. epoch=E takes the checkpoint after that epoch
(checkpoint.keep_last says how many stay) and writes rank-E.json and so on. Interrupted, the same command goes on. A run
with parts of your own needs the modules that register them: 'plugins=[my_package.parts]'."""

KEYS = ("run", "n", "seed", "epoch", "images", "benchmark", "benchmark.path", "plugins")


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    run: Path
    n: int | None = None
    seed: int = 0
    epoch: int | None = None
    images: int | None = None
    benchmark: str | None = None
    benchmark_path: str | None = None


def rank(request: Request) -> str:
    """Judge and compare; the table of correlations as text."""
    from supernet.decisions import Decisions
    from supernet.ranking import judge_all, markdown, random_list, write_ranking
    from supernet.runtime.random import key

    config = _config(request)
    with _trained(request, config) as search:
        decisions = Decisions(search.parts.space)
        truth, source, default = _truth(request, config, decisions, search)
        n = request.n or default
        name = "rank" if request.epoch is None else f"rank-{request.epoch}"
        # What was asked of another table is not an answer here.
        asked = key(request.seed, str(getattr(config.benchmark, "path", "")), n, request.images or 0)
        file = request.run / "rank" / f"{name}-{source}-{asked:x}.json"
        file.parent.mkdir(exist_ok=True)
        rows = judge_all(search, random_list(decisions, n, request.seed), truth, file, request.images)
        about = {
            "truth": source,
            "images": request.images,
            "seed": request.seed,
            "epoch": search.epoch,
            "seconds": search.seconds,
        }
        found = write_ranking(rows, about, request.run, name)
    if request.epoch is None:
        _into_report(request.run, {**about, "n": n, "correlations": [vars(c) for c in found]})
    return markdown(found, n)


def _config(request: Request) -> Config:
    """The run's configuration, with the benchmark that is named here."""
    from supernet.registry import PARTS
    from supernet.run import CONFIG_FILE

    path = request.run / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"run={request.run}: there is no {CONFIG_FILE}, which a run writes; check the path")
    config = from_yaml(path.read_text(), source=str(path))
    if request.benchmark is not None:
        part = PARTS.get(("benchmark", request.benchmark))
        if part is None:
            valid = [n for g, n in PARTS if g == "benchmark"]
            raise UserError(f"benchmark={request.benchmark} is not known", valid=valid, got=request.benchmark)
        config = dataclasses.replace(config, benchmark=part.config())
    if request.benchmark_path is not None:
        if not hasattr(config.benchmark, "path"):
            raise UserError(f"benchmark.path={request.benchmark_path}: name the benchmark too, benchmark=nasbench201")
        config = dataclasses.replace(
            config, benchmark=dataclasses.replace(config.benchmark, path=request.benchmark_path)
        )
    return config


@contextmanager
def _trained(request: Request, config: Config) -> Iterator[Search]:
    """The run's search with the weights of its checkpoint. Raises UserError where the search is not finished."""
    from supernet.build import build_search, build_space, build_task
    from supernet.loop import Services
    from supernet.report.progress import Progress
    from supernet.report.recorder import Recorder
    from supernet.runtime.checkpoint import Checkpoints
    from supernet.runtime.device import pick_device, set_threads
    from supernet.runtime.signals import Interrupt

    set_threads(config.threads)
    task = build_task(config)
    with Interrupt() as interrupt, Progress() as progress, Recorder(request.run / "rank") as recorder:
        services = Services(pick_device(config.device), recorder, progress, interrupt)
        search = build_search(config, task, build_space(config, task), services)
        checkpoints = Checkpoints(request.run / "checkpoints" / search.phase)
        step = None if request.epoch is None else request.epoch * search.steps_per_epoch
        found = checkpoints.load_newest(until=step)
        if found is None or (step is not None and found[0]["position"]["epoch"] != request.epoch):
            where = "" if request.epoch is None else f" after epoch {request.epoch} (checkpoint.keep_last keeps more)"
            raise UserError(f"run={request.run}: there is no checkpoint of its search{where}; train the supernet first")
        search.load_state_dict(found[0]["parts"])
        search.set_position(found[0]["position"])
        if request.epoch is None and search.epoch < search.epochs and search.stopped is None:
            raise UserError(
                f"run={request.run}: its search stands at epoch {search.epoch} of {search.epochs}: finish it with "
                f"resume=auto, or rank the supernet as it is with epoch={search.epoch}"
            )
        yield search


def _truth(
    request: Request, config: Config, decisions: Decisions, search: Search
) -> tuple[Callable[[Values], float], str, int]:
    """What says how good an architecture is, its name, and how many architectures are asked for by default."""
    from supernet.benchmarks import build_benchmark

    benchmark = build_benchmark(config, search.parts.space)
    if benchmark is not None:
        metric = benchmark.metric
        return lambda values: benchmark.answer(decisions.genotype(values))[metric], metric, 200
    if config.retrain.epochs == 0:
        raise UserError(
            f"run={request.run} trains no children (retrain.epochs=0) and names no benchmark: give benchmark=NAME"
        )
    folder = request.run / "rank" / "children"
    return lambda values: _child_accuracy(config, decisions, values, folder), "test accuracy of the child", 20


def _child_accuracy(config: Config, decisions: Decisions, values: Values, folder: Path) -> float:
    """Test accuracy of the child, trained in a directory of its own, from where that stands."""
    from supernet.runtime.files import write_atomic
    from supernet.train import retrain

    genotype = decisions.genotype(values)
    directory = folder / "-".join(map(str, values))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "asked.json"
    write_atomic(path, json.dumps(genotype.to_json()) + "\n")
    asked = dataclasses.replace(
        config, genotype=str(path), resume="auto", run_dir=str(directory), benchmark=None, modifier={}
    )
    return float(retrain(asked, directory)["child"]["test"]["accuracy"])


def _into_report(run: Path, ranking: dict[str, Any]) -> None:
    from supernet.report.run_report import write_report

    path = run / "report.json"
    if path.exists():
        write_report(run, {**json.loads(path.read_text()), "ranking": ranking})


def read_request(arguments: Sequence[str]) -> Request:
    """The arguments of the command; the plug-ins that they name are imported. Raises UserError."""
    given, _ = read_arguments("rank", KEYS, arguments)
    import_named(given)
    if "run" not in given:
        raise UserError("give run=DIR: python -m supernet.rank run=DIR")
    numbers = {}
    for key, least in (("n", 3), ("seed", 0), ("epoch", 1), ("images", 1)):
        if key in given:
            if not given[key].isdecimal() or int(given[key]) < least:
                raise UserError(f"{key}={given[key]}: it must be a whole number of at least {least}")
            numbers[key] = int(given[key])
    return Request(
        Path(given["run"]),
        numbers.get("n"),
        numbers.get("seed", 0),
        numbers.get("epoch"),
        numbers.get("images"),
        given.get("benchmark"),
        given.get("benchmark.path"),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    return run_command(USAGE, lambda given: rank(read_request(given)), arguments)


if __name__ == "__main__":
    sys.exit(main())
