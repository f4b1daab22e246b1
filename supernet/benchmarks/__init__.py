"""What is known of architectures from a table: asked by reports, and never by a search."""

from __future__ import annotations

from supernet.interfaces import Benchmark, SearchSpace
from supernet.loop import Services
from supernet.registry import build
from supernet.schema import Config
from supernet.search import Watcher
from supernet.spaces.genotype import Genotype


def build_benchmark(config: Config, space: SearchSpace) -> Benchmark | None:
    """The table that the configuration names, read and found to have every architecture of the space."""
    if config.benchmark is None:
        return None
    benchmark: Benchmark = build("benchmark", config.benchmark, space=space)
    return benchmark


def recorded(benchmark: Benchmark, services: Services) -> Watcher:
    """Records what is known of the genotype of every epoch; it returns nothing, so nothing comes back to the search."""

    def watch(genotype: Genotype, step: int, epoch: int) -> None:
        values = benchmark.answer(genotype)
        services.recorder.scalars(
            "search", {f"truth/{name}": value for name, value in values.items()}, step=step, epoch=epoch
        )
        services.progress.message(benchmark.sentence(values))

    return watch
