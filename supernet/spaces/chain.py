"""Chains: plain convolutional networks, whose depth, widths, kernels, activations, pools, initialisations and
connections are decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from supernet.data.images import check_size
from supernet.errors import UserError
from supernet.interfaces import SearchSpace
from supernet.runtime.compute import MEMORY_FORMATS
from supernet.schema.spaces import ChainConfig
from supernet.spaces.chain_genotype import LAYER_KINDS, WORDS, Layer, Stage, agreeing, read_chain, write_chain
from supernet.spaces.chain_net import Choices, ChosenLayer, MixedLayer, Share
from supernet.spaces.chain_options import CONNECTIONS, POOLS, RESIDUAL, channels_of, fit
from supernet.spaces.genotype import Genotype
from supernet.spaces.ops import Norm
from supernet.types import Group, Mixing

GRAPH = "chain"
ORDERED = ("depth", "width", "kernel")


@dataclass(frozen=True)
class ChainSpace(SearchSpace):
    """A description of the space; edit it with ``dataclasses.replace`` before building.

    A cell of other spaces is a stage here, and a child has the stages that were searched, so ``search_cells`` and
    ``child_cells`` are one number. A stage has one of ``depths`` layers; from one stage to the next the image halves
    and the channels double. ``scope`` says whether layers decide by themselves, a stage for all of its layers, or the
    network for all of them; depths and pools are always decided by stages.
    """

    in_channels: int
    classes: int
    depths: tuple[int, ...] = (1, 2, 3)
    widths: tuple[float, ...] = (0.25, 0.5, 1.0)
    kernels: tuple[int, ...] = (3, 5)
    activations: tuple[str, ...] = ("relu", "gelu", "silu")
    pools: tuple[str, ...] = POOLS
    inits: tuple[str, ...] = ("kaiming_normal", "xavier_uniform", "orthogonal")
    connections: tuple[str, ...] = CONNECTIONS
    scope: str = "layer"
    search_channels: int = 16
    search_cells: int = 3
    child_channels: int = 16
    child_cells: int = 3
    auxiliary: bool = False
    statistics: str = "batch"
    engine: str = "banked"
    memory_format: str = "channels_last"

    def __post_init__(self) -> None:
        for kind in ("activation", "pool", "init", "connection"):
            for name in getattr(self, f"{kind}s"):
                if name not in WORDS[kind]:
                    raise UserError(f"space.{kind}s: {name!r} is not known", valid=WORDS[kind], got=name)

    @property
    def drops_paths(self) -> bool:
        """Only what a residual connection goes past can be dropped."""
        return RESIDUAL in self.connections

    def check(self, image: tuple[int, int], *, search: bool) -> None:
        """Refuse small images, children of other stages than were searched, and widths that are one."""
        check_size(image, self.child_cells - 1, key="")
        if search and self.search_cells != self.child_cells:
            raise UserError(
                f"search.cells={self.search_cells}, retrain.cells={self.child_cells}: with space=chain a cell is a "
                "stage, and the child has the stages that were searched; set both to the same number"
            )
        if self.auxiliary:
            raise UserError("retrain.auxiliary_weight must be 0 with space=chain, whose network has no auxiliary head")
        sizes = {"retrain.channels": self.child_channels} | (
            {"search.channels": self.search_channels} if search else {}
        )
        for key, channels in sizes.items():
            for a, b in pairwise(self.widths):
                if channels_of(a, channels, 0) == channels_of(b, channels, 0):
                    raise UserError(
                        f"{key}={channels}: space.widths {a:g} and {b:g} of it are both {channels_of(a, channels, 0)}; "
                        "choose more channels, or other widths"
                    )

    def check_genotype(self, genotype: Genotype, where: str = "genotype") -> None:
        """Any chain with as many stages as the child has."""
        stages = read_chain(genotype, where)
        if len(stages) != self.child_cells:
            raise UserError(
                f"{where}: it has {len(stages)} stages, and retrain.cells={self.child_cells}; set that to {len(stages)}"
            )

    @property
    def groups(self) -> tuple[Group, ...]:
        stages, depth = range(1, self.search_cells + 1), self.depths[-1]
        firsts = {str(s): (s - 1) * depth + 1 for s in stages}  # the first node of each stage
        layers = {f"{s}.{i}": (s - 1) * depth + i for s in stages for i in range(1, depth + 1)}
        places = {"layer": layers, "stage": firsts, "network": {"all": 1}}[self.scope]
        pooled = {name: node for name, node in firsts.items() if name != "1"}
        groups = [self._group("depth", firsts)] + ([self._group("pool", pooled)] if pooled else [])
        return (*groups, *(self._group(kind, places) for kind in LAYER_KINDS))

    def _group(self, kind: str, places: Mapping[str, int]) -> Group:
        options = self.labels(kind)
        return Group(
            name=kind,
            options=options,
            sources=tuple(node - 1 for node in places.values()),
            targets=tuple(places.values()),
            placements=1,
            mask_NK=((True,) * len(options),) * len(places),
            kind=kind,
            ordered=kind in ORDERED,
            graph=GRAPH,
            names=tuple(places),
        )

    def labels(self, kind: str) -> tuple[str, ...]:
        """The options of a group, as a genotype writes them."""
        return tuple(f"{value:g}" if kind == "width" else str(value) for value in getattr(self, f"{kind}s"))

    def decision(self, stage: int, layer: int) -> int:
        """The decision about a layer, both counted from 0, in the groups of layers."""
        return {"layer": stage * self.depths[-1] + layer, "stage": stage, "network": 0}[self.scope]

    def build_supernet(self) -> Supernet:
        """The over-parameterised network; p must have all groups."""
        return Supernet(self)

    def build_child(self, genotype: Genotype) -> Child:
        """The network of a genotype, with affine batch norm and running statistics."""
        return Child(self, genotype)

    def genotype(self, choices: Mapping[str, Sequence[tuple[int, int]]]) -> Genotype:
        """Genotype of the chosen (decision, option) pairs; layers beyond the depth of their stage are not in it."""
        chosen = {kind: dict(pairs) for kind, pairs in choices.items()}
        stages = []
        for s in range(self.search_cells):
            layers = []
            for i in range(self.depths[chosen["depth"][s]]):
                n = self.decision(s, i)
                layers.append(Layer(**{kind: getattr(self, f"{kind}s")[chosen[kind][n]] for kind in LAYER_KINDS}))
            stages.append(Stage(self.pools[chosen["pool"][s - 1]] if s else None, tuple(layers)))
        return write_chain(stages)

    def choices(self, genotype: Genotype) -> dict[str, list[tuple[int, int]]]:
        """The (decision, option) pairs of all stages and of the layers that there are."""
        self.check_genotype(genotype)
        found: dict[tuple[str, int], set[object]] = {}
        for s, stage in enumerate(read_chain(genotype)):
            found[("depth", s)] = {str(len(stage.layers))}
            if stage.pool is not None:
                found[("pool", s - 1)] = {stage.pool}
            for i, layer in enumerate(stage.layers):
                for kind in LAYER_KINDS:
                    value = getattr(layer, kind)
                    label = f"{value:g}" if kind == "width" else str(value)
                    n = self.decision(s, i) if i < self.depths[-1] else -1
                    found.setdefault((kind, n), set()).add(label)
        agreeing({f"{kind}/{n}": values for (kind, n), values in found.items() if n >= 0})
        pairs: dict[str, list[tuple[int, int]]] = {group.name: [] for group in self.groups}
        for (kind, n), values in sorted(found.items(), key=lambda item: item[0]):
            for value in values:
                if value not in self.labels(kind):
                    raise UserError(
                        f"genotype: {kind}={value} cannot be chosen", valid=self.labels(kind), got=str(value)
                    )
                pairs[kind].append((n, self.labels(kind).index(str(value))))
        return pairs


class Supernet(nn.Module):
    """Chains of all depths, with one set of weights for each initialisation; p, an argument, slices and mixes them."""

    def __init__(self, space: ChainSpace) -> None:
        super().__init__()
        self.space = space
        norm = Norm(affine=False, track=space.statistics == "running")
        self._memory_format = MEMORY_FORMATS[space.memory_format]
        self.stages = nn.ModuleList()
        channels = space.in_channels
        for stage in range(space.search_cells):
            widths = tuple(channels_of(width, space.search_channels, stage) for width in space.widths)
            options = Choices(widths, space.kernels, space.activations, space.pools, space.inits, space.connections)
            layers = nn.ModuleList()
            for _ in range(space.depths[-1]):
                layers.append(MixedLayer(channels, options, norm))
                channels = widths[-1]
            self.stages.append(layers)
        self.classifier = nn.Linear(channels, space.classes)

    def forward(self, x_BCHW: Tensor, p: Mixing) -> Tensor:
        """``logits_BK`` over classes."""
        x_BCHW = x_BCHW.contiguous(memory_format=self._memory_format)
        at = {kind: group.at(0) for kind, group in p.items()}
        for s, layers in enumerate(self.stages):
            depth, outputs = Share.of(at["depth"], s), {}
            deepest = max(self.space.depths[k] for k in depth.options)
            for i, layer in enumerate(islice(layers.children(), deepest)):
                shares = {kind: Share.of(at[kind], self.space.decision(s, i)) for kind in LAYER_KINDS}
                if s and not i:
                    shares["pool"] = Share.of(at["pool"], s - 1)
                x_BCHW = outputs[i + 1] = layer(x_BCHW, shares)
            wanted = {k: outputs[self.space.depths[k]] for k in depth.options}
            widest = max(y_BCHW.shape[1] for y_BCHW in wanted.values())
            x_BCHW = depth.sum(lambda k, wanted=wanted, widest=widest: fit(wanted[k], widest))  # type: ignore[misc]
        features_BC = reduce(x_BCHW, "b c h w -> b c", "mean")
        return F.linear(features_BC, self.classifier.weight[:, : features_BC.shape[1]], self.classifier.bias)


class Child(nn.Module):
    """The discrete network of a genotype."""

    def __init__(self, space: ChainSpace, genotype: Genotype) -> None:
        super().__init__()
        space.check_genotype(genotype)
        norm = Norm(affine=True, track=True)
        self._memory_format = MEMORY_FORMATS[space.memory_format]
        self.layers = nn.ModuleList()
        before = space.in_channels
        for s, stage in enumerate(read_chain(genotype)):
            for i, layer in enumerate(stage.layers):
                channels = channels_of(layer.width, space.child_channels, s)
                self.layers.append(ChosenLayer(before, channels, layer, None if i else stage.pool, norm))
                before = channels
        self.classifier = nn.Linear(before, space.classes)

    def forward(self, x_BCHW: Tensor, drop_path: float = 0.0) -> Tensor:
        """``logits_BK``."""
        x_BCHW = x_BCHW.contiguous(memory_format=self._memory_format)
        for layer in self.layers:
            x_BCHW = layer(x_BCHW, drop_path)
        logits_BK: Tensor = self.classifier(reduce(x_BCHW, "b c h w -> b c", "mean"))
        return logits_BK


def from_config(config: ChainConfig, **sizes: Any) -> ChainSpace:
    """The space that a configuration describes; ``sizes`` are fields of :class:`ChainSpace` that depend on the data."""
    return ChainSpace(
        depths=tuple(sorted(config.depths)),
        widths=tuple(sorted(config.widths)),
        kernels=tuple(sorted(config.kernels)),
        activations=tuple(config.activations),
        pools=tuple(config.pools),
        inits=tuple(config.inits),
        connections=tuple(config.connections),
        scope=config.scope,
        **sizes,
    )
