"""What the candidate operations of a supernet cost, each by itself at the size that it has there."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from supernet.interfaces import SearchSpace
from supernet.spaces.cell import MixedOp, plainly
from supernet.types import GroupMixing, Mixing

WARM_UP, RUNS = 5, 21
"""Calls of an operation before it is measured, and calls of which the median is its latency."""


@dataclass(frozen=True)
class Candidate:
    """An option of a decision at a placement: its module, on the meta device, and the shape that it reads.

    Candidates with the same ``key`` cost the same.
    """

    group: str
    place: tuple[int, int, int]  # placement, decision, option
    module: nn.Module
    shape: tuple[int, ...]
    key: Hashable


def candidates(space: SearchSpace, image: tuple[int, int, int]) -> list[Candidate]:
    """Every candidate that a supernet computes, which ``none`` is not, found by one dry run of its plain modules.

    On the meta device it does no arithmetic. All of p is one buffer, so that where the p of a mixed operation begins
    says which decision it is at which placement, in every space whose network is made of them.
    """
    with torch.device("meta"):
        net, x_BCHW = space.build_supernet(), torch.empty(2, *image)
    p, owner = _addressed(space)
    found: list[Candidate] = []
    reading: dict[nn.Module, tuple[MixedOp, int, tuple[str, int, int]]] = {}

    def enter(mixed: MixedOp, args: tuple[Any, ...]) -> None:
        reading.update({op: (mixed, k, owner[args[1].storage_offset()]) for k, op in enumerate(mixed.ops)})

    def read(module: nn.Module, args: tuple[Tensor]) -> None:
        mixed, k, (group, m, n) = reading[module]
        shape = tuple(args[0].shape)
        found.append(Candidate(group, (m, n, k), module, shape, (mixed.options[k], mixed.stride, shape)))

    mixed_ops = [module for module in net.modules() if isinstance(module, MixedOp)]
    hooks = [mixed.register_forward_pre_hook(enter) for mixed in mixed_ops]
    hooks += [op.register_forward_pre_hook(read) for mixed in mixed_ops for op in mixed.ops]
    with plainly(net), torch.no_grad():
        net(x_BCHW, p)
    for hook in hooks:
        hook.remove()
    return found


def _addressed(space: SearchSpace) -> tuple[Mixing, dict[int, tuple[str, int, int]]]:
    """p in one buffer on the meta device, and the group, placement and decision that begins at each place of it."""
    sizes = {g.name: (g.placements, g.decisions, len(g.options)) for g in space.groups}
    flat = torch.empty(sum(map(math.prod, sizes.values())), device="meta")
    parts = flat.split([math.prod(size) for size in sizes.values()])
    groups: dict[str, GroupMixing] = {}
    owner: dict[int, tuple[str, int, int]] = {}
    for g, part in zip(space.groups, parts, strict=True):
        op_LNK = part.view(sizes[g.name])
        groups[g.name] = GroupMixing(op_LNK, tuple(tuple(g.built(n)) for n in range(g.decisions)))
        for m in range(g.placements):
            owner |= {int(op_LNK[m, n].storage_offset()): (g.name, m, n) for n in range(g.decisions)}
    return Mixing(groups), owner


def cost_table(
    space: SearchSpace, image: tuple[int, int, int], cost: Callable[[Candidate], float], device: torch.device
) -> dict[str, Tensor]:
    """``cost_LNK`` of every group: what each option costs at each placement and decision; 0 if it is not computed."""
    tables = {g.name: torch.zeros(g.placements, g.decisions, len(g.options)) for g in space.groups}
    known: dict[Hashable, float] = {}
    for candidate in candidates(space, image):
        if candidate.key not in known:
            known[candidate.key] = cost(candidate)
        tables[candidate.group][candidate.place] = known[candidate.key]
    return {name: table_LNK.to(device) for name, table_LNK in tables.items()}


def multiply_adds(candidate: Candidate) -> float:
    """Multiply-adds for one image: of convolutions and products, as papers count FLOPs (torch counts two for each)."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        candidate.module(torch.empty(candidate.shape, device="meta"))
    return float(counter.get_total_flops()) / 2 / candidate.shape[0]


def parameters(candidate: Candidate) -> float:
    """Number of weights; in a supernet norms have none, in a child two for each channel."""
    return float(sum(w.numel() for w in candidate.module.parameters()))


def milliseconds(candidate: Candidate, device: torch.device) -> float:
    """Median time of a forward pass of one image on the device, by itself and in evaluation mode."""
    module = copy.deepcopy(candidate.module).to_empty(device=device).eval()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.inference_mode():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(1.0 / max(1, tensor[0].numel()))
        x_BCHW = torch.randn(1, *candidate.shape[1:], device=device)
        for _ in range(WARM_UP):
            module(x_BCHW)
        return statistics.median(seconds_of_call(module, x_BCHW) for _ in range(RUNS)) * 1e3


def seconds_of_call(module: nn.Module, x_BCHW: Tensor) -> float:
    """Time of one call, until the device has done it."""
    _wait(x_BCHW.device)
    begin = time.perf_counter()
    module(x_BCHW)
    _wait(x_BCHW.device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
