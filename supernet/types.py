"""The vocabulary that every part speaks.

Axis letters, used as suffixes of names throughout the project:

====== =====================================================================
letter meaning
====== =====================================================================
B      batch
C      channels (``CI`` and ``CO`` where the two sides differ)
H, W   rows and columns of an image or feature map
L      placement: the cells of one kind, in order; 1 where all of them share
N      decision of a group (in a cell space: an edge)
K      option of a decision (in a cell space: a candidate operation)
====== =====================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Mask = tuple[tuple[bool, ...], ...]
"""Which options exist: ``mask_NK[n][k]``. It lives on the host, so shapes and control flow never wait for a device."""

Active = tuple[tuple[int, ...], ...]
"""The sampled option of every decision: ``active_LN[l][n]``, on the host."""

Phase = Literal["alpha", "weights", "evaluate", "derive"]
"""What p is being made for; p is sampled once per phase of a step and shared by all passes of that phase."""


@dataclass(frozen=True)
class Moment:
    """When a part acts. ``progress`` is the share of the search that is done, ``stage_progress`` that of the present
    stage (the same where a search has one stage), both in [0, 1), and 1 when it is over; ``epoch`` and ``stage`` count
    from 0, and ``path`` the subgraphs of a weight step that trains several."""

    phase: Phase
    epoch: int
    progress: float
    stage_progress: float
    stage: int = 0
    path: int = 0


class Batch(NamedTuple):
    """One batch on the device: inputs (images: ``x_BCHW``, normalised) and targets (classes: ``y_B``)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Group:
    """One decision group of a search space: N decisions with the same K options.

    ``sources[n]`` and ``targets[n]`` are the state that decision n reads and the node that it feeds; a derivation keeps
    ``keep`` decisions per node (all of them where None). ``underivable`` options are in no genotype. ``extras`` are
    options that no relaxation knows (their mask is False): they are built on every decision, and a modifier gives them
    their p and their mask. ``kind`` is what is decided ("op", "skip", "width" ...), and the options of an ``ordered``
    group go from small to large. Groups of one ``graph`` are about the same nodes, so that their decisions are taken
    node by node; else every group stands for itself. ``names`` are those of the decisions where they are no edges.
    """

    name: str
    options: tuple[str, ...]
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    placements: int
    mask_NK: Mask
    keep: int | None = None
    underivable: frozenset[str] = frozenset()
    extras: frozenset[str] = frozenset()
    kind: str = "op"
    ordered: bool = False
    graph: str = ""
    names: tuple[str, ...] = ()

    @property
    def decisions(self) -> int:
        """N."""
        return len(self.sources)

    def label(self, n: int) -> str:
        """Name decision n for people: ``2<-0`` is the edge from state 0 to state 2."""
        return self.names[n] if self.names else f"{self.targets[n]}<-{self.sources[n]}"

    def derivable(self, n: int) -> list[int]:
        """Options of decision n that a genotype may contain."""
        barred = self.underivable | self.extras
        return [k for k, name in enumerate(self.options) if self.mask_NK[n][k] and name not in barred]

    def built(self, n: int) -> list[bool]:
        """Which options the network holds at decision n: those that exist, and the extras."""
        return [here or name in self.extras for here, name in zip(self.mask_NK[n], self.options, strict=True)]


@dataclass(frozen=True)
class GroupMixing:
    """p of one group: how much of every option the network uses.

    ``op_LNK`` weighs option K at decision N in placement L (L is 1 where all placements share); ``edge_LN`` is an
    edge's own weight or None; ``mask_NK`` says which options exist; ``active_LN`` names the options of a one-hot p, so
    that nobody has to look into a tensor to know what to compute, and is None for a dense p. In training, ``dropout_K``
    is the rate at which elements of an option's output are dropped, ``drop_path`` that of whole samples of a decision's
    weighted sum; what is kept is scaled up.
    """

    op_LNK: Tensor
    mask_NK: Mask
    edge_LN: Tensor | None = None
    active_LN: Active | None = None
    dropout_K: tuple[float, ...] | None = None
    drop_path: float = 0.0

    def tensors(self) -> list[Tensor]:
        """The tensors of p, op first."""
        return [self.op_LNK] if self.edge_LN is None else [self.op_LNK, self.edge_LN]

    def at(self, placement: int) -> CellMixing:
        """What the cell at this placement sees."""
        index = placement if self.op_LNK.shape[0] > 1 else 0
        edge_N = None
        if self.edge_LN is not None:
            edge_N = self.edge_LN[placement if self.edge_LN.shape[0] > 1 else 0]
        active_N = None
        if self.active_LN is not None:
            active_N = self.active_LN[placement if len(self.active_LN) > 1 else 0]
        return CellMixing(self.op_LNK[index], self.mask_NK, edge_N, active_N, self.dropout_K, self.drop_path)


@dataclass(frozen=True)
class CellMixing:
    """p of one cell: :class:`GroupMixing` at one placement."""

    op_NK: Tensor
    mask_NK: Mask
    edge_N: Tensor | None = None
    active_N: tuple[int, ...] | None = None
    dropout_K: tuple[float, ...] | None = None
    drop_path: float = 0.0

    def options(self, n: int) -> list[int]:
        """The options to evaluate at decision n: all that exist, or of these the sampled one."""
        chosen = range(len(self.mask_NK[n])) if self.active_N is None else (self.active_N[n],)
        return [k for k in chosen if self.mask_NK[n][k]]


class Mixing(Mapping[str, GroupMixing]):
    """p: the narrow type between methods and networks, one :class:`GroupMixing` per decision group."""

    def __init__(self, groups: Mapping[str, GroupMixing]) -> None:
        self._groups = dict(groups)

    def __getitem__(self, name: str) -> GroupMixing:
        return self._groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def tensors(self) -> list[Tensor]:
        """All tensors of p, in a fixed order."""
        return [t for group in self._groups.values() for t in group.tensors()]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Mixing:
        """The same p with other tensors, given in the order of :meth:`tensors`."""
        rest = iter(tensors)
        groups = {}
        for name, group in self._groups.items():
            op_LNK = next(rest)
            edge_LN = None if group.edge_LN is None else next(rest)
            groups[name] = replace(group, op_LNK=op_LNK, edge_LN=edge_LN)
        return Mixing(groups)

    def map(self, function: Callable[[Tensor], Tensor]) -> Mixing:
        """p with ``function`` applied to each of its tensors."""
        return self.with_tensors([function(t) for t in self.tensors()])

    def detach(self) -> Mixing:
        """p without a graph: what the weight step uses, since it needs no gradient of alpha."""
        return self.map(torch.Tensor.detach)

    def leaf(self) -> Mixing:
        """p as leaves that require a gradient, to be pulled back to alpha once (:func:`supernet.updates.pull_back`)."""
        return self.map(lambda t: t.detach().requires_grad_())
