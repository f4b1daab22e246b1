"""The macro space of ENAS (arXiv:1802.03268), section 2.3: the whole network, layer by layer, with skip connections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from supernet.data.images import check_size
from supernet.errors import UserError
from supernet.interfaces import SearchSpace
from supernet.runtime.compute import MEMORY_FORMATS
from supernet.schema.spaces import EnasMacroConfig
from supernet.spaces.edge_choices import edge_choices
from supernet.spaces.enas_operations import ENAS_OPERATIONS
from supernet.spaces.enas_skeleton import ChosenLayer, LayerMixing, MixedLayer, Skeleton, pool_layers
from supernet.spaces.genotype import CellGenotype, Edge, Genotype, validate
from supernet.spaces.ops import OPERATIONS, Norm
from supernet.types import Group, Mixing

KIND = "macro"
"""What the one cell of such a genotype is called: its input is the stem, its nodes are the layers."""

SKIP = "skip_connect"
OFF, ON = 0, 1


@dataclass(frozen=True)
class EnasMacroSpace(SearchSpace):
    """A description of the space; edit it with ``dataclasses.replace`` before building.

    Layer l has one of ``operations`` on layer l - 1, and reads any of the stem and the layers before that besides: with
    L layers 6^L * 2^(L (L - 1) / 2) networks. A cell of other spaces is a layer here, and a child has the layers that
    were searched, so ``search_cells`` and ``child_cells`` are one number. Channels stay the same in the supernet; in
    the child they are multiplied by ``child_growth`` where the image halves, as in the published code.
    """

    in_channels: int
    classes: int
    operations: tuple[str, ...] = ENAS_OPERATIONS
    search_channels: int = 36
    search_cells: int = 12
    child_channels: int = 36
    child_cells: int = 12
    child_growth: int = 2
    search_dropout: float = 0.1
    child_dropout: float = 0.5
    auxiliary: bool = False
    statistics: str = "batch"
    engine: str = "banked"
    memory_format: str = "channels_last"

    def __post_init__(self) -> None:
        for name in self.operations:
            if name not in OPERATIONS:
                raise UserError(f"space.operations: no operation is named {name!r}", valid=OPERATIONS, got=name)
        if "none" in self.operations:
            raise UserError("space.operations: a layer of space=enas_macro needs an operation; leave none out")

    def check(self, image: tuple[int, int], *, search: bool) -> None:
        """Refuse small images, children of another depth than was searched, and what this space has not."""
        check_size(image, len(pool_layers(self.child_cells)), key="")
        if self.child_cells < 2:
            raise UserError(
                f"retrain.cells={self.child_cells}: with space=enas_macro a cell is a layer, and a skip connection "
                "needs two of them; set it to at least 2"
            )
        if search and self.search_cells != self.child_cells:
            raise UserError(
                f"search.cells={self.search_cells}, retrain.cells={self.child_cells}: with space=enas_macro a cell is "
                "a layer, and the child has the layers that were searched; set both to the same number"
            )
        if self.auxiliary:
            raise UserError(
                "retrain.auxiliary_weight must be 0 with space=enas_macro, whose network has no auxiliary head"
            )

    def check_genotype(self, genotype: Genotype, where: str = "genotype") -> None:
        """A layer has its operation first, then its skip connections in ascending order."""
        validate(genotype, OPERATIONS, where)
        cell = genotype.cells.get(KIND)
        if cell is None or len(genotype.cells) > 1 or cell.inputs != 1 or cell.concat != (len(cell.nodes),):
            raise UserError(f"{where}: it is no network of the ENAS macro space, which is written macro=[[...], ...]")
        if len(cell.nodes) != self.child_cells:
            raise UserError(
                f"{where}: it has {len(cell.nodes)} layers, and retrain.cells={self.child_cells}; set that to "
                f"{len(cell.nodes)}"
            )
        for layer, node in enumerate(cell.nodes, start=1):
            sources = [source for _, source in node]
            skips = sources[1:]
            if sources[:1] != [layer - 1] or skips != sorted(set(skips) - {layer - 1}):
                raise UserError(
                    f"{where}, {KIND}: layer {layer} reads {sources}; first comes its operation on state {layer - 1}, "
                    "then skip connections from earlier ones in ascending order"
                )
            if any(operation != SKIP for operation, _ in node[1:]):
                raise UserError(f"{where}, {KIND}: layer {layer} has an operation on an earlier state than the last")

    @property
    def groups(self) -> tuple[Group, ...]:
        layers = range(1, self.search_cells + 1)
        skips = [(source, layer) for layer in layers for source in range(layer - 1)]
        return (
            Group(
                name="layer",
                options=self.operations,
                sources=tuple(layer - 1 for layer in layers),
                targets=tuple(layers),
                placements=1,
                mask_NK=((True,) * len(self.operations),) * len(layers),
                graph=KIND,
            ),
            Group(
                name="skip",
                options=("off", "on"),
                sources=tuple(source for source, _ in skips),
                targets=tuple(layer for _, layer in skips),
                placements=1,
                mask_NK=((True, True),) * len(skips),
                kind="skip",
                graph=KIND,
            ),
        )

    def build_supernet(self) -> Supernet:
        """The over-parameterised network; p must have the groups "layer" and "skip"."""
        return Supernet(self)

    def build_child(self, genotype: Genotype) -> Child:
        """The network of a genotype, with running statistics."""
        return Child(self, genotype)

    def genotype(self, choices: Mapping[str, Sequence[tuple[int, int]]]) -> Genotype:
        """Genotype of the chosen (decision, option) pairs: a skip connection that is off is not in it."""
        layer, skip = self.groups
        nodes: list[list[Edge]] = [[(layer.options[k], layer.sources[n])] for n, k in sorted(choices["layer"])]
        for n, k in sorted(choices["skip"]):
            if k == ON:
                nodes[skip.targets[n] - 1].append((SKIP, skip.sources[n]))
        return Genotype({KIND: CellGenotype(tuple(map(tuple, nodes)), (len(nodes),), inputs=1)})

    def choices(self, genotype: Genotype) -> dict[str, list[tuple[int, int]]]:
        """The (decision, option) pairs of all layers and of all skip connections, on or off."""
        self.check_genotype(genotype)
        layer, skip = self.groups
        nodes = genotype.cells[KIND].nodes
        first = Genotype({KIND: CellGenotype(tuple(node[:1] for node in nodes), (len(nodes),), inputs=1)})
        on = {(source, target) for target, node in enumerate(nodes, start=1) for _, source in node[1:]}
        pairs = zip(skip.sources, skip.targets, strict=True)
        return {
            "layer": edge_choices(first, layer, KIND),
            "skip": [(n, ON if pair in on else OFF) for n, pair in enumerate(pairs)],
        }


class Supernet(nn.Module):
    """Every operation of every layer and every skip connection, mixed by p, which is an argument.

    Skips have two options of which "off" gives nothing, so that a layer is norm(sum over k of p_k o_k(x_l-1) + sum over
    j < l - 1 of p_on,j x_j). Batch norms are affine, as published.
    """

    def __init__(self, space: EnasMacroSpace) -> None:
        super().__init__()
        _, skip = space.groups
        norm = Norm(affine=True, track=space.statistics == "running")
        self._memory_format = MEMORY_FORMATS[space.memory_format]

        def build_layer(layer: int, channels: int) -> MixedLayer:
            into = [(n, s) for n, (s, t) in enumerate(zip(skip.sources, skip.targets, strict=True)) if t == layer]
            return MixedLayer(layer, space.operations, into, channels, norm)

        reads = [range(layer) for layer in range(1, space.search_cells + 1)]
        channels = [space.search_channels] * 3
        self.stack = Skeleton(
            space.in_channels, space.classes, channels, reads, build_layer, norm, dropout=space.search_dropout
        )

    def forward(self, x_BCHW: Tensor, p: Mixing) -> Tensor:
        """``logits_BK`` over classes."""
        x_BCHW = x_BCHW.contiguous(memory_format=self._memory_format)
        mixing = LayerMixing(p["layer"].at(0), p["skip"].at(0))
        logits_BK: Tensor = self.stack(x_BCHW, mixing)
        return logits_BK


class Child(nn.Module):
    """The discrete network of a genotype. Drop path drops a layer's operation where a skip connection goes past it."""

    def __init__(self, space: EnasMacroSpace, genotype: Genotype) -> None:
        super().__init__()
        space.check_genotype(genotype)
        nodes = genotype.cells[KIND].nodes
        norm = Norm(affine=True, track=True)
        self._memory_format = MEMORY_FORMATS[space.memory_format]

        def build_layer(layer: int, channels: int) -> ChosenLayer:
            (operation, _), *skips = nodes[layer - 1]
            module = OPERATIONS[operation].build(channels, 1, norm)
            return ChosenLayer(layer, module, [source for _, source in skips], channels, norm)

        reads = [[source for _, source in node] for node in nodes]
        channels = [space.child_channels * space.child_growth**level for level in range(3)]
        self.stack = Skeleton(
            space.in_channels, space.classes, channels, reads, build_layer, norm, dropout=space.child_dropout
        )

    def forward(self, x_BCHW: Tensor, drop_path: float = 0.0) -> Tensor:
        """``logits_BK``."""
        logits_BK: Tensor = self.stack(x_BCHW.contiguous(memory_format=self._memory_format), drop_path)
        return logits_BK


def from_config(config: EnasMacroConfig, **sizes: Any) -> EnasMacroSpace:
    """The space that a configuration describes; ``sizes`` are fields of :class:`EnasMacroSpace` that depend on the
    data."""
    return EnasMacroSpace(
        operations=tuple(config.operations),
        child_growth=config.child_growth,
        search_dropout=config.search_dropout,
        child_dropout=config.child_dropout,
        **sizes,
    )
