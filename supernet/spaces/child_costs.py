"""What a child costs: parameters, multiply-adds, milliseconds."""

from __future__ import annotations

import statistics

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from supernet.interfaces import SearchSpace
from supernet.spaces.costs import RUNS, WARM_UP, seconds_of_call
from supernet.spaces.genotype import Genotype


def count_parameters(net: nn.Module) -> int:
    """Number of learned numbers, without an auxiliary head, as papers count."""
    return sum(p.numel() for name, p in net.named_parameters() if not name.startswith("auxiliary."))


def count_macs(space: SearchSpace, genotype: Genotype, size: tuple[int, int]) -> int:
    """Multiply-adds of one image through the child (torch counts two operations for each)."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        child = space.build_child(genotype).eval()
        child(torch.empty(1, space.in_channels, *size))
    return int(counter.get_total_flops()) // 2


def milliseconds_of_child(space: SearchSpace, genotype: Genotype, size: tuple[int, int], device: torch.device) -> float:
    """Median time of one image through the child on the device, in evaluation mode."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.inference_mode():
        child = space.build_child(genotype).to(device).eval()
        x_BCHW = torch.randn(1, space.in_channels, *size, device=device)
        for _ in range(WARM_UP):
            child(x_BCHW)
        return statistics.median(seconds_of_call(child, x_BCHW) for _ in range(RUNS)) * 1e3


def child_cost(
    space: SearchSpace, genotype: Genotype, size: tuple[int, int], metric: str, device: torch.device
) -> float:
    """ "flops" (multiply-adds of one image), "params" or "latency" (milliseconds of one image on the device)."""
    if metric == "flops":
        return float(count_macs(space, genotype, size))
    if metric == "params":
        with torch.device("meta"):
            return float(count_parameters(space.build_child(genotype)))
    return milliseconds_of_child(space, genotype, size, device)
