"""From a configuration to the parts that it names."""

from __future__ import annotations

import torch

from supernet.errors import UserError
from supernet.interfaces import Derivation, MixingModifier, Modifier, SearchSpace, Setting, SpaceModifier
from supernet.loop import Services
from supernet.mixer import Mixer
from supernet.registry import build
from supernet.retraining import Retraining
from supernet.runtime.compute import compile_in_place
from supernet.runtime.random import reseed
from supernet.schema import Config
from supernet.search import Search, SearchParts
from supernet.spaces.genotype import Genotype
from supernet.stages import build_supernet
from supernet.tasks.images import ImageClassification


def build_task(config: Config) -> ImageClassification:
    """Read the data of the task."""
    task: ImageClassification = build("task", config.task, limit=config.limit.images)
    if config.retrain.epochs > 0:
        task.retrain_loaders(config, torch.device("cpu"))  # refuses now what would else come out after the search
    return task


def build_space(config: Config, task: ImageClassification) -> SearchSpace:
    """The search space, with its networks sized for the task."""
    space: SearchSpace = build(
        "space",
        config.space,
        in_channels=task.in_channels,
        classes=len(task.classes),
        search_channels=config.search.channels,
        search_cells=config.search.cells,
        child_channels=config.retrain.channels,
        child_cells=config.retrain.cells,
        auxiliary=config.retrain.auxiliary_weight > 0,
        statistics=config.search.statistics,
        engine=config.engine,
        memory_format=config.memory_format,
    )
    space.check(task.data.train.size, search=config.genotype is None)
    if config.retrain.drop_path > 0 and not space.drops_paths:
        raise UserError(
            f"retrain.drop_path={config.retrain.drop_path:g} would do nothing: no layer of this space has anything "
            "that goes past it; set it to 0"
        )
    return space


def build_search(config: Config, task: ImageClassification, space: SearchSpace, services: Services) -> Search:
    """The search, with every part that the configuration names, at its first step."""
    # In the order of their names, so that one set of modifiers is one search, however it was written.
    modifiers: dict[str, Modifier] = {
        name: build("modifier", config.modifier[name]) for name in sorted(config.modifier)
    }
    for modifier in modifiers.values():
        if isinstance(modifier, SpaceModifier):
            space = modifier.edit_space(space)
    setting = Setting(space, (task.in_channels, *task.data.train.size), services.device, config.seed)
    for modifier in modifiers.values():
        modifier.bind(setting)
    net = build_supernet(config, space, services.device)
    mixer = Mixer(
        space.groups,
        build("relaxation", config.relaxation),
        list(modifiers.values()),
        seed=config.seed,
        init_std=config.search.alpha.init_std,
        device=services.device,
    )
    architecture = [*mixer.parameters(), *(p for m in modifiers.values() for p in m.parameters())]
    update = build("update", config.update, alpha=config.search.alpha, architecture=architecture)
    if isinstance(update, MixingModifier):  # a controller, which says on which subgraphs the weights are trained
        update.bind(setting)
        mixer.modifiers.append(update)
    derivation: Derivation = build("derive", config.derive, seed=config.seed)
    if modifiers and not derivation.needs_search:
        raise UserError(
            f"modifier=[{','.join(modifiers)}] would do nothing: derive={config.derive.name} searches for nothing, so "
            "leave it out"
        )
    parts = SearchParts(space, task, net, mixer, modifiers, update, derivation, architecture)
    return Search(config, parts, services)


def build_retraining(
    config: Config, task: ImageClassification, space: SearchSpace, genotype: Genotype, services: Services
) -> Retraining:
    """The retraining of a genotype; it starts the same whether a search came before it or not."""
    reseed(config.seed, "retrain/init")
    child = space.build_child(genotype).to(services.device)
    if config.compile:
        compile_in_place(child)
    return Retraining(config, task, child, services)
